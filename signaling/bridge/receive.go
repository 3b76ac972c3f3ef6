// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"io"
)

// receive is the goroutine of a Stream: it takes messages until the channel
// ends. It never waits for the reader, so that one stream that is not read
// does not hold up the others of its peer connection; windows bound what piles
// up, and the memory they share bounds all of them together.
func (s *Stream) receive() {
	defer close(s.done)
	err := s.receiveAll()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: the other side closed the channel", io.ErrUnexpectedEOF)
	}
	s.fail(err)
	s.closeChannel()
}

func (s *Stream) receiveAll() error {
	for {
		message, text, inPlace, err := s.receiveOne()
		switch {
		case err != nil:
			return err
		case text:
			err = s.control(message)
		default:
			err = s.data(message, inPlace)
		}
		if err != nil {
			s.Abort(CodeInvalid, err.Error())
			return err
		}
	}
}

// receiveOne reads one message, if it can into the place at the end of the
// queue where it would be added.
func (s *Stream) receiveOne() (message []byte, text, inPlace bool, err error) {
	s.mu.Lock()
	space := s.in.space()
	s.mu.Unlock()
	n, text, err := s.ch.ReadMessage(space)
	if !errors.Is(err, io.ErrShortBuffer) {
		return space[:n], text, true, err
	}
	large := make([]byte, maxMessage)
	n, text, err = s.ch.ReadMessage(large)
	// Holding 256 KiB for a message of 20 would be a gift to attackers.
	return append([]byte(nil), large[:n]...), text, false, err
}

// data takes bytes. Its error is a breach of the protocol by the other side.
func (s *Stream) data(message []byte, inPlace bool) error {
	s.mu.Lock()
	s.received += int64(len(message))
	fin, over := s.finGot, s.received > s.allowed
	s.mu.Unlock()
	switch {
	case isClosed(s.failed):
		return nil // nobody will read them
	case fin:
		return errors.New("bytes after fin")
	case over:
		return errors.New("more bytes than the window allows")
	}
	if s.cfg.Memory != nil && s.cfg.Memory.Acquire(s.ctx, int64(len(message))) != nil {
		return nil // closed meanwhile
	}
	s.mu.Lock()
	if isClosed(s.failed) {
		s.mu.Unlock()
		s.release(len(message))
		return nil
	}
	if inPlace {
		s.in.commit(len(message))
	} else {
		s.in.add(message)
	}
	s.mu.Unlock()
	signal(s.readable)
	return nil
}

func (s *Stream) control(message []byte) error {
	c, err := ParseControl(message)
	if err != nil {
		return err
	}
	switch c.Type {
	case TypeOpen:
		s.answered(nil)
	case TypeError:
		err := &Error{Code: c.Code, Message: c.Message}
		s.answered(err)
		s.fail(err)
	case TypeWindow:
		s.mu.Lock()
		s.credit = min(s.credit+c.Bytes, Window)
		s.mu.Unlock()
		signal(s.writable)
	case TypeFin:
		s.fin()
	case TypeReset:
		s.fail(&Error{Code: c.Code, Message: c.Message})
	}
	return nil
}

func (s *Stream) answered(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Server || isClosed(s.opened) {
		return
	}
	s.openErr, s.openGiven = err, err == nil
	close(s.opened)
}

// fin ends the receiving direction properly.
func (s *Stream) fin() {
	s.mu.Lock()
	again := s.finGot
	s.finGot = true
	if s.readErr == nil {
		s.readErr = io.EOF
	}
	both := s.finSent
	s.mu.Unlock()
	signal(s.readable)
	if both && !again {
		s.finished()
	}
}
