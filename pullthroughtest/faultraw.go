package pullthroughtest

import "encoding/binary"

// GoAway is an HTTP/2 GOAWAY frame for [Fault.Raw] (RFC 9113, section 6.8): the server takes no more requests on this
// connection and has looked at none behind lastStream. A connection's requests are streams 1, 3, 5 and so on. A code
// of 0 says that all is well.
func GoAway(lastStream, code uint32) []byte {
	frame := []byte{0, 0, 8, 7, 0, 0, 0, 0, 0} // length, type, flags, stream
	frame = binary.BigEndian.AppendUint32(frame, lastStream)
	return binary.BigEndian.AppendUint32(frame, code)
}
