// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// envPrefix starts the name of every environment variable that we read.
const envPrefix = "MESHGATE_"

// fromSources fills the flags that the command line left alone: from the
// environment first, then from the YAML file at path (empty: no file). The
// order of strength is flags, environment, file, default. A key of the file
// that names no flag is an error, so that a typo is never silent.
func fromSources(flags *pflag.FlagSet, path string) error {
	k := koanf.New(".")
	if path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return usagef("configuration file %s: %w", path, err)
		}
	}
	if err := checkKeys(flags, k.Keys(), path); err != nil {
		return err
	}
	if flags.Changed("token") && flags.Changed("token-file") {
		return usagef("--token and --token-file exclude each other")
	}
	// A stronger source of one of the two beats a weaker one of the other.
	rivals := map[string]string{"token": "token-file", "token-file": "token"}
	fromFlag := map[string]bool{}
	for name := range rivals {
		fromFlag[name] = flags.Changed(name)
	}
	var first error
	flags.VisitAll(func(f *pflag.Flag) {
		rival := rivals[f.Name]
		if f.Changed || first != nil || f.Name == "config" || fromFlag[rival] {
			return
		}
		if text, ok := os.LookupEnv(envName(f.Name)); ok {
			if err := flags.Set(f.Name, text); err != nil {
				first = usagef("environment variable %s: %w", envName(f.Name), valueError(err))
			}
			return
		}
		if _, ok := os.LookupEnv(envName(rival)); ok && rival != "" {
			return
		}
		if k.Exists(f.Name) {
			if err := set(flags, f, k); err != nil {
				first = usagef("configuration file %s: key %s: %w", path, f.Name, valueError(err))
			}
		}
	})
	return first
}

// valueError is err about the value of a flag, with the values that it takes in place
// of what a parser of numbers says.
func valueError(err error) error {
	var wrong *pflag.InvalidValueError
	var number *strconv.NumError
	if !errors.As(err, &wrong) || !errors.As(err, &number) {
		return err
	}
	want := "a whole number"
	switch f := wrong.GetFlag(); f.Value.Type() {
	case "bool":
		want = "true or false"
	case "int32":
		want += fmt.Sprintf(" from %d to %d", math.MinInt32, math.MaxInt32)
	case "uint16":
		want += fmt.Sprintf(" from 0 to %d", math.MaxUint16)
	case "uint32":
		want += fmt.Sprintf(" from 0 to %d", uint32(math.MaxUint32))
	}
	return fmt.Errorf("--%s %q: want %s (%s)", wrong.GetFlag().Name, wrong.GetValue(), want, wrong.GetFlag().Usage)
}

func set(flags *pflag.FlagSet, f *pflag.Flag, k *koanf.Koanf) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.Replace(k.Strings(f.Name))
	}
	return flags.Set(f.Name, fmt.Sprint(k.Get(f.Name)))
}

// checkKeys refuses keys that no flag has, and proposes the nearest one.
func checkKeys(flags *pflag.FlagSet, keys []string, path string) error {
	var unknown []string
	for _, key := range keys {
		if flags.Lookup(key) == nil || key == "config" {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	sort.Strings(unknown)
	hint := ""
	if near := nearest(flags, unknown[0]); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	return usagef("configuration file %s: unknown key %s%s", path, strings.Join(unknown, ", "), hint)
}

// unknownEnv describes each variable of environ that has our prefix and that no
// flag of any command below root reads. Such a variable is no error: it may be
// for another version of this program. Variables that Kubernetes makes for a
// service called meshgate are not ours.
func unknownEnv(root *cobra.Command, environ []string) []string {
	known := map[string]bool{}
	all := pflag.NewFlagSet("all", pflag.ContinueOnError)
	var collect func(*cobra.Command)
	collect = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			known[envName(f.Name)] = true
			if all.Lookup(f.Name) == nil {
				all.AddFlag(f)
			}
		})
		for _, sub := range c.Commands() {
			collect(sub)
		}
	}
	collect(root)
	var out []string
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		setting, ours := strings.CutPrefix(name, envPrefix)
		if !ours || known[name] || strings.HasPrefix(setting, "SERVICE_") || setting == "PORT" || strings.HasPrefix(setting, "PORT_") {
			continue
		}
		text := fmt.Sprintf("environment variable %s is no setting and has no effect", name)
		if near := nearest(all, strings.ToLower(strings.ReplaceAll(setting, "_", "."))); near != "" {
			text += fmt.Sprintf("; did you mean %s?", envName(near))
		}
		out = append(out, text)
	}
	return out
}

// nearest is the flag name with the smallest edit distance to key, when that
// is small enough to be a typo.
func nearest(flags *pflag.FlagSet, key string) string {
	best, name := 4, ""
	flags.VisitAll(func(f *pflag.Flag) {
		if d := distance(f.Name, key); d < best {
			best, name = d, f.Name
		}
	})
	return name
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			above := row[j]
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			row[j] = min(cost, above+1, row[j-1]+1)
			diagonal = above
		}
	}
	return row[len(b)]
}

// envName is the environment variable for a flag: turn.listen is
// MESHGATE_TURN_LISTEN.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(flag))
}
