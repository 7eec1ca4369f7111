package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTimeout = 10 * time.Second
	endTimeout   = 20 * time.Second
	// ticksPerSecond is the unit of /proc/PID/stat: 100 on all Linux that Go runs on.
	ticksPerSecond = 100
)

// process is a server. Its processor time and its memory include those of its children.
type process struct {
	cmd   *exec.Cmd
	url   string
	ended chan struct{} // closed when it has ended
}

// start starts a server that prints "listening on URL" when it is ready.
func start(ctx context.Context, env []string, program string, args ...string) (*process, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- text
		_ = cmd.Wait() // the exit status does not matter
		close(p.ended)
	}()
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	var text string
	select {
	case text = <-line:
	case <-timer.C:
	case <-ctx.Done():
	}
	url, ok := strings.CutPrefix(strings.TrimSpace(text), "listening on ")
	if !ok {
		p.end()
		return nil, fmt.Errorf("%s %s did not start", program, strings.Join(args, " "))
	}
	p.url = url
	return p, nil
}

// startAt starts a server that is ready when it accepts a connection at address.
func startAt(ctx context.Context, address, program string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(program, args...), url: "http://" + address, ended: make(chan struct{})}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // the exit status does not matter
		close(p.ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if conn, err := net.Dial("tcp", address); err == nil {
			return p, conn.Close()
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			p.end()
			return nil, fmt.Errorf("%s did not start: %w", program, ctx.Err())
		case <-p.ended:
			return nil, fmt.Errorf("%s has ended: %s", program, p.cmd.ProcessState)
		}
	}
}

// freeAddress returns an address on which nothing listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// end ends the process.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended
	select {
	case <-p.ended:
	case <-time.After(endTimeout):
		p.kill()
	}
}

// kill ends the process without warning.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// files returns /proc/PID/name of the process and its children.
func (p *process) files(name string) []string {
	pid := strconv.Itoa(p.cmd.Process.Pid)
	children, _ := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children")) // none on other systems
	var files []string
	for _, pid := range append(strings.Fields(string(children)), pid) {
		files = append(files, filepath.Join("/proc", pid, name))
	}
	return files
}

// cpu returns the processor time in seconds that the process has used. It returns 0 on
// systems other than Linux.
func (p *process) cpu() (sum float64) {
	for _, name := range p.files("stat") {
		stat, _ := os.ReadFile(name)
		_, rest, _ := strings.Cut(string(stat), ") ") // the fields after the name
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.ParseFloat(fields[11], 64)
		system, _ := strconv.ParseFloat(fields[12], 64)
		sum += (user + system) / ticksPerSecond
	}
	return sum
}

// resetPeak resets the peak resident size. If that is not permitted, the peak includes
// the warm-up of the process.
func (p *process) resetPeak() {
	for _, name := range p.files("clear_refs") {
		_ = os.WriteFile(name, []byte("5"), 0)
	}
}

// peak returns the peak resident size in bytes. It returns 0 on systems other than Linux.
func (p *process) peak() (sum int64) {
	for _, name := range p.files("status") {
		status, _ := os.ReadFile(name)
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				sum += kib << 10
			}
		}
	}
	return sum
}
