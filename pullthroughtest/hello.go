package pullthroughtest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing/fstest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// HelloOutput is what the program of [NewHello] prints.
const HelloOutput = "Hello from pullthrough.\n"

// NewHello makes an image that runs: its program, /hello, prints [HelloOutput] and exits with 0. It is an index as BuildKit
// makes it, with an image for linux/amd64, one for linux/arm64 and an attestation of each. It is the same every time.
//
//	up.Push("library/hello", "latest", pullthroughtest.NewHello())
//	... docker run --rm HOST/PREFIX/library/hello ...
func NewHello() *Image {
	var images []*Image
	for _, architecture := range []string{"amd64", "arm64"} {
		images = append(images, NewImage(ImageOptions{
			Files:      fstest.MapFS{"hello": {Data: hello(architecture), Mode: 0o755}},
			Platform:   ocispec.Platform{OS: "linux", Architecture: architecture},
			Entrypoint: []string{"/hello"},
		}))
	}
	return NewIndex(images[0], images[1], NewAttestation(images[0]), NewAttestation(images[1]))
}

// hello is a static Linux program: a header, one segment that is the whole file, the code, and the text that it prints.
func hello(architecture string) []byte {
	const origin = 0x400000
	machine, code := elf.EM_X86_64, helloAMD64()
	if architecture == "arm64" {
		machine, code = elf.EM_AARCH64, helloARM64()
	}
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{
			0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT),
		},
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
	}
	var segment elf.Prog64
	header.Ehsize, header.Phentsize = uint16(binary.Size(header)), uint16(binary.Size(segment))
	header.Phoff, header.Phnum = uint64(header.Ehsize), 1
	begin := uint64(header.Ehsize + header.Phentsize)
	header.Entry = origin + begin
	size := begin + uint64(len(code)+len(HelloOutput))
	segment = elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: origin, Paddr: origin, Filesz: size, Memsz: size, Align: 0x10000,
	}
	var b bytes.Buffer
	for _, part := range []any{header, segment, code, []byte(HelloOutput)} {
		_ = binary.Write(&b, binary.LittleEndian, part) // a Buffer takes everything
	}
	return b.Bytes()
}

func helloAMD64() []byte {
	return []byte{
		0xb8, 1, 0, 0, 0, // mov $1, %eax: write
		0xbf, 1, 0, 0, 0, // mov $1, %edi: to standard output
		0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea 16(%rip), %rsi: what is behind the code
		0xba, byte(len(HelloOutput)), 0, 0, 0, // mov $length, %edx
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov $60, %eax: exit
		0x31, 0xff, // xor %edi, %edi: with 0
		0x0f, 0x05, // syscall
	}
}

func helloARM64() (code []byte) {
	for _, instruction := range []uint32{
		0xd2800020,                               // mov x0, #1: standard output
		0x100000e1,                               // adr x1, .+28: what is behind the code
		0xd2800002 | uint32(len(HelloOutput))<<5, // mov x2, #length
		0xd2800808,                               // mov x8, #64: write
		0xd4000001,                               // svc #0
		0xd2800000,                               // mov x0, #0
		0xd2800ba8,                               // mov x8, #93: exit
		0xd4000001,                               // svc #0
	} {
		code = binary.LittleEndian.AppendUint32(code, instruction)
	}
	return code
}
