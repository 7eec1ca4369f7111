package pullthroughtest

import "encoding/binary"

// GoAway returns an HTTP/2 GOAWAY frame for [Fault.Raw] (RFC 9113, section 6.8). It says that the server accepts no more
// requests on this connection and has processed none after lastStream. The requests of a connection are streams 1, 3, 5
// and so on. Code 0 is NO_ERROR.
func GoAway(lastStream, code uint32) []byte {
	frame := []byte{0, 0, 8, 7, 0, 0, 0, 0, 0} // length, type, flags, stream
	frame = binary.BigEndian.AppendUint32(frame, lastStream)
	return binary.BigEndian.AppendUint32(frame, code)
}
