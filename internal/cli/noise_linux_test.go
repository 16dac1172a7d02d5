package cli

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/fivetuple/fivetuple/join"
)

// noise is the random bytes of a seed: AES-CTR of zeros.
type noise struct {
	stream  cipher.Stream
	left    int64      // beyond the record
	records bool       // with their lengths before them, as --messages length has it; otherwise all is one record
	lengths *rand.Rand // of records
	prefix  []byte     // of the record, to come
	record  int64      // bytes of it to come
}

func newNoise(seed uint64, size int64, records bool) *noise {
	var key, iv [aes.BlockSize]byte
	binary.BigEndian.PutUint64(key[:], seed)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	return &noise{stream: cipher.NewCTR(block, iv[:]), left: size, records: records, lengths: rand.New(rand.NewPCG(seed, 0))}
}

func (n *noise) Read(p []byte) (int, error) {
	if n.record == 0 && len(n.prefix) == 0 {
		if n.left == 0 {
			return 0, io.EOF
		}
		n.record = n.left
		if n.records { // small ones, too
			n.record = min(n.left, 1+n.lengths.Int64N(1+n.lengths.Int64N(join.MaxDatagram)))
			n.prefix = binary.BigEndian.AppendUint32(nil, uint32(n.record))
		}
		n.left -= n.record
	}
	if len(n.prefix) > 0 {
		size := copy(p, n.prefix)
		n.prefix = n.prefix[size:]
		return size, nil
	}
	p = p[:min(int64(len(p)), n.record)]
	clear(p)
	n.stream.XORKeyStream(p, p)
	n.record -= int64(len(p))
	return len(p), nil
}

// send writes all of it in pieces of random length, and ends the file.
func (n *noise) send(w io.WriteCloser, s *stalls) error {
	buffer := make([]byte, 128<<10)
	for {
		size, end := io.ReadFull(n, buffer[:1+s.random.IntN(len(buffer))])
		if _, err := w.Write(buffer[:size]); err != nil {
			return err
		}
		if end != nil {
			return w.Close()
		}
		s.passed(size)
	}
}

// receive reads to the end of the file, which must be all of it and nothing else.
// Each byte is compared, where checksums would not say which one is wrong.
func (n *noise) receive(r io.Reader, s *stalls) error {
	got, want := make([]byte, 128<<10), make([]byte, 128<<10)
	var total int64
	for {
		size, err := r.Read(got)
		wanted, _ := io.ReadFull(n, want[:size])
		if !bytes.Equal(got[:size], want[:wanted]) {
			i := 0
			for i < wanted && got[i] == want[i] {
				i++
			}
			return fmt.Errorf("byte %d is not what was sent", total+int64(i))
		}
		total += int64(size)
		if missing := n.left + n.record + int64(len(n.prefix)); err == io.EOF && missing > 0 {
			return fmt.Errorf("the end after %d bytes, with %d or more still to come", total, missing)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", total, err)
		}
		s.passed(size)
	}
}

// stalls are the times at which a reader or writer stops for up to 300 ms. They wait
// for nothing: to stand still is what they are for.
type stalls struct {
	random *rand.Rand
	apart  int64 // bytes, on average
	until  int64 // bytes until the next one
}

// newStalls makes about two in a large transfer, and any in few of the small ones,
// which would take no time otherwise.
func newStalls(seed uint64, size int64) *stalls {
	s := &stalls{random: rand.New(rand.NewPCG(seed, 1)), apart: max(size/2, 8<<20)}
	if s.random.IntN(8) == 0 {
		s.apart = size/2 + 1
	}
	s.plan()
	return s
}

func (s *stalls) plan() { s.until = s.random.Int64N(2 * s.apart) }

func (s *stalls) passed(n int) {
	if s.until -= int64(n); s.until <= 0 {
		time.Sleep(time.Duration(s.random.Int64N(int64(300 * time.Millisecond))))
		s.plan()
	}
}
