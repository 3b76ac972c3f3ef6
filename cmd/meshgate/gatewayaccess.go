// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/secrets"
)

// readFiles reads what the operator keeps in files: the certificate, the secrets and
// users of TURN, and passwords. One that is missing is told by its name, before the
// gateway has written anything.
func (p *gatewayProcess) readFiles() (err error) {
	if p.tls, err = p.certificate(); err != nil {
		return err
	}
	if p.cfg.turnListen != "" {
		if err := p.openTURNFiles(); err != nil {
			return err
		}
	}
	if p.cfg.htpasswdFile == "" {
		return nil
	}
	p.passwords, err = gateway.NewPasswords(p.cfg.htpasswdFile, p.log.With("component", "gateway"))
	if err != nil {
		return fmt.Errorf("--auth.htpasswd-file: %w", err)
	}
	return nil
}

// certificate is what the public listener shows: that of the operator, or one
// of the gateway's own. It is nil when a proxy ends TLS.
func (p *gatewayProcess) certificate() (*gateway.TLS, error) {
	c := p.cfg
	if c.tlsOff {
		return nil, nil
	}
	if c.tlsCert != "" {
		t := &gateway.TLS{CertFile: c.tlsCert, KeyFile: c.tlsKey}
		if err := t.Check(); err != nil {
			return nil, fmt.Errorf("--tls.cert-file and --tls.key-file: %w; leave both out for a self-signed certificate", err)
		}
		return t, nil
	}
	if c.dataDir == "" {
		return nil, usagef("a self-signed certificate is kept in --data-dir; give one, or --tls.cert-file")
	}
	t := &gateway.TLS{SelfSignedDir: filepath.Join(c.dataDir, "tls"), Names: []string{p.address.String()}}
	if c.domain != "" {
		t.Names = append(t.Names, c.domain)
	}
	return t, nil
}

// authenticators are the ways to come in besides keys of members, in the state
// s with the tokens of shared.
func (p *gatewayProcess) authenticators(s *mesh.Snapshot, shared *secrets.Secrets) ([]gateway.Authenticator, error) {
	fixed := map[string]string{}
	if p.token != "" {
		fixed[p.token] = registry.Admin(s)
	}
	tokens, err := p.tokens(fixed)
	if err != nil {
		return nil, err
	}
	list := []gateway.Authenticator{gateway.NewSharedTokens(shared), tokens}
	if p.passwords != nil {
		list = append(list, p.passwords)
	}
	return list, nil
}

// accessIn says who may come in, in the state s with the tokens of shared.
func (p *gatewayProcess) accessIn(s *mesh.Snapshot, shared *secrets.Secrets) (gateway.Access, error) {
	authenticators, err := p.authenticators(s, shared)
	if err != nil {
		return gateway.Access{}, err
	}
	trusted, err := networks("--trusted-proxies", p.cfg.trustedProxies)
	return gateway.Access{Authenticators: authenticators, Origins: p.cfg.origins, TrustedProxies: trusted}, err
}

// tokens are those of the token file, and fixed ones.
func (p *gatewayProcess) tokens(fixed map[string]string) (*gateway.Tokens, error) {
	file := p.cfg.tokensFile
	if file == "" && p.cfg.dataDir != "" {
		file = filepath.Join(p.cfg.dataDir, tokensFile)
		if err := makeTokens(file); err != nil {
			return nil, err
		}
	}
	tokens, err := gateway.NewTokens(fixed, file, p.log.With("component", "gateway"))
	if err != nil {
		return nil, fmt.Errorf("--auth.tokens-file: %w", err)
	}
	return tokens, nil
}
