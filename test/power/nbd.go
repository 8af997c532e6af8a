package power

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Numbers of the NBD protocol (doc/proto.md of NetworkBlockDevice/nbd).
const (
	nbdMagic     = 0x4e42444d41474943 // NBDMAGIC
	optionMagic  = 0x49484156454f5054 // IHAVEOPT
	answerMagic  = 0x0003e889045565a9
	requestMagic = 0x25609513
	replyMagic   = 0x67446698

	fixedNewstyle, noZeroes = 1, 2
	optionAbort, optionGo   = 2, 7
	answerAck, answerInfo   = 1, 3
	answerUnsupported       = 1<<31 | 1
	infoExport, infoBlocks  = 0, 3

	// hasFlags and sendFlush tell the other side that the disk has a volatile
	// cache, which a flush gets past. Forced unit access is not offered.
	hasFlags, sendFlush = 1, 4

	commandRead, commandWrite, commandDisconnect, commandFlush = 0, 1, 2, 3
	ioError                                                    = 5
	maxRequest                                                 = 32 << 20 // bytes
)

// serve is the disk's cable: machines connect to it, one at a time, over NBD.
// It returns when the listener is closed.
func (d *Disk) serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		d.power(conn)
		c := &cable{disk: d, in: bufio.NewReaderSize(conn, 1<<20), out: conn}
		// The machine goes away, or the power does.
		if c.negotiate() == nil {
			_ = c.requests()
		}
		conn.Close()
	}
}

type cable struct {
	disk *Disk
	in   *bufio.Reader
	out  io.Writer
	err  error
}

func (c *cable) send(values ...any) {
	var message []byte
	for _, v := range values {
		if text, ok := v.([]byte); ok {
			message = append(message, text...)
			continue
		}
		message, _ = binary.Append(message, binary.BigEndian, v) // fixed sizes
	}
	if c.err == nil {
		_, c.err = c.out.Write(message)
	}
}

func (c *cable) receive(into any) {
	if c.err == nil {
		c.err = binary.Read(c.in, binary.BigEndian, into)
	}
}

// negotiate is the fixed newstyle handshake, up to NBD_OPT_GO.
func (c *cable) negotiate() error {
	c.send(uint64(nbdMagic), uint64(optionMagic), uint16(fixedNewstyle|noZeroes))
	var flags uint32
	c.receive(&flags)
	for c.err == nil {
		var option struct {
			Magic        uint64
			Kind, Length uint32
		}
		c.receive(&option)
		if c.err != nil || option.Magic != optionMagic || option.Length > 1<<16 {
			break
		}
		c.receive(make([]byte, option.Length))
		answer := func(kind uint32, data ...any) {
			length := uint32(0)
			for _, d := range data {
				length += uint32(binary.Size(d))
			}
			c.send(append([]any{uint64(answerMagic), option.Kind, kind, length}, data...)...)
		}
		switch option.Kind {
		case optionGo:
			answer(answerInfo, uint16(infoExport), uint64(c.disk.size), uint16(hasFlags|sendFlush))
			answer(answerInfo, uint16(infoBlocks), uint32(sector), uint32(4096), uint32(maxRequest))
			answer(answerAck)
			return c.err
		case optionAbort:
			answer(answerAck)
			return io.EOF
		default:
			answer(answerUnsupported)
		}
	}
	return errors.Join(c.err, errors.New("no handshake"))
}

// requests answers one request after the other.
func (c *cable) requests() error {
	for {
		var r struct {
			Magic       uint32
			Flags, Kind uint16
			Handle      uint64
			Offset      uint64
			Length      uint32
		}
		if c.receive(&r); c.err != nil {
			return c.err
		}
		if r.Magic != requestMagic || r.Length > maxRequest {
			return fmt.Errorf("no request: %+v", r)
		}
		var data []byte
		if r.Kind == commandRead || r.Kind == commandWrite {
			data = make([]byte, r.Length)
		}
		var err error
		switch r.Kind {
		case commandRead:
			err = c.disk.read(data, int64(r.Offset))
		case commandWrite:
			if c.receive(data); c.err != nil {
				return c.err
			}
			err = c.disk.write(data, int64(r.Offset))
			data = nil
		case commandFlush:
			err = c.disk.flush()
		case commandDisconnect:
			return nil
		default:
			err = fmt.Errorf("unknown command %d", r.Kind)
		}
		if errors.Is(err, errOff) {
			return err
		}
		code := uint32(0)
		if err != nil {
			code, data = ioError, nil
		}
		if c.send(uint32(replyMagic), code, r.Handle, data); c.err != nil {
			return c.err
		}
	}
}
