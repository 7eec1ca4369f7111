package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
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

// process is a server that prints "listening on URL" when it is ready.
type process struct {
	cmd   *exec.Cmd
	url   string
	ended chan struct{} // closed when it has ended
}

// start starts a server and waits until it listens.
func start(ctx context.Context, program string, args ...string) (*process, error) {
	cmd := exec.Command(program, args...)
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

// end ends the process.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended
	select {
	case <-p.ended:
	case <-time.After(endTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

func (p *process) file(name string) string {
	return fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, name)
}

// cpu returns the processor time in seconds that the process has used. It returns 0 on
// systems other than Linux.
func (p *process) cpu() float64 {
	stat, err := os.ReadFile(p.file("stat"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // the fields after the name
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / ticksPerSecond
}

// resetPeak resets the peak resident size. If that is not permitted, the peak includes
// the warm-up of the process.
func (p *process) resetPeak() { _ = os.WriteFile(p.file("clear_refs"), []byte("5"), 0) }

// peak returns the peak resident size in bytes. It returns 0 on systems other than Linux.
func (p *process) peak() int64 {
	status, err := os.ReadFile(p.file("status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}
