package pullthrough

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/repeat"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// observer is how the parts of a Proxy reach the host's clock, log and event
// handler.
//
// The log is for people. It has a line for each fetch that has failed, other than by
// a registry's plain 404, and one for each failure that a client reads as 500: where what a
// client reads says too little to mend it. Lines of one cause are logged once a minute.
type observer struct {
	onEvent func(context.Context, Event) // nil: nobody is told
	log     *slog.Logger
	now     func() time.Time
}

// causeOf are the attributes of a line that tell its cause from others. What a client has
// asked for is not among them.
var causeOf = []string{"account", "region", "rule", "host", "status"}

func newObserver(onEvent func(context.Context, Event), logger *slog.Logger, now func() time.Time) *observer {
	if logger == nil {
		logger = slog.Default()
	}
	if now == nil {
		now = time.Now
	}
	return &observer{onEvent, slog.New(repeat.New(logger.Handler(), now, causeOf...)), now}
}

// tell reports e. What the host does with it must not hurt the pull.
func (o *observer) tell(ctx context.Context, e Event) {
	if o.onEvent == nil {
		return
	}
	if err := hostcall.Guard("OnEvent", func() error { o.onEvent(ctx, e); return nil }); err != nil {
		o.logBroken(ctx, e.Request.Repo, e.Request.Ref, err)
	}
}

// start is when a request began. It is zero, and costs nothing, if nobody is told.
func (o *observer) start() time.Time {
	if o.onEvent == nil {
		return time.Time{}
	}
	return o.now()
}

// answer is what every request ends with: the error gets its words, and the host is
// told. start is when the request began.
func (o *observer) answer(ctx context.Context, e Event, start time.Time, out outcome, err error) error {
	if err != nil {
		out.blob = e.Kind == EventBlob
		err = o.explain(ctx, e.Request, out, err)
	}
	if o.onEvent != nil {
		e.Duration, e.Err = o.now().Sub(start), err
		o.tell(ctx, e)
	}
	return err
}

// explain gives the error of a request that is not told by an event its words, and logs a
// failure of ours.
func (o *observer) explain(ctx context.Context, r Request, out outcome, err error) error {
	err = out.words(ctx, r.Repo, r.Ref, err)
	o.logFailure(ctx, r, out, err)
	return err
}

// logFailure logs an error that ends a request, if a client reads it as 500, or if there is
// a rule that can cover nothing: only the host can mend that.
func (o *observer) logFailure(ctx context.Context, r Request, out outcome, err error) {
	if err == nil || out.told || ctx.Err() != nil {
		return
	}
	if status, _, _ := OCI(err); status == http.StatusInternalServerError {
		o.logBroken(ctx, r.Repo, r.Ref, err)
	} else if errors.Is(err, ErrNoRule) && errors.Is(err, errBadRule) {
		o.log.WarnContext(ctx, sayBadRule, append(named(r.Repo, r.Ref), "err", err)...)
	}
}

// logUnread logs that a request was answered although the rules cannot be read, if err says so.
func (o *observer) logUnread(ctx context.Context, r Request, err error) {
	if err != nil && ctx.Err() == nil {
		o.logBroken(ctx, r.Repo, r.Ref, err)
	}
}

const sayBadRule = "a pull through cache rule is not valid: correct it"

// logBroken logs what is wrong in the host's code, its rules or the Proxy's fields.
func (o *observer) logBroken(ctx context.Context, repo Repo, ref string, err error) {
	if unset, ok := errors.AsType[unsetError](err); ok {
		o.log.ErrorContext(ctx, string(unset))
		return
	}
	call, _ := hostcall.Failed(err)
	say := "internal error"
	if call != "" {
		say = call + " has failed: the host must mend it"
	} else if errors.Is(err, errBadRule) {
		say = sayBadRule
	}
	o.log.ErrorContext(ctx, say, caused(named(repo, ref), err)...)
}

// logFetch logs a fetch that has failed, unless upstream just does not have the object,
// nobody wants it any more, or a client reads of the failure as 500, which has a line then.
func (o *observer) logFetch(ctx context.Context, rt *route, ref string, err error) {
	status, _, _ := OCI(err)
	e := errorOf(err)
	switch {
	case status == http.StatusInternalServerError, errors.Is(err, context.Canceled), e.Kind == ErrClosed:
		return
	case isPlainNotFound(e, ref):
		return
	}
	attrs := append(named(rt.repo, ref), "rule", rt.prefix(), "host", rt.base.Host)
	if e.Status != 0 {
		attrs = append(attrs, "status", e.Status)
	}
	if e.RetryAfter > 0 {
		attrs = append(attrs, "retryAfter", e.RetryAfter.Round(time.Second))
	}
	o.log.WarnContext(ctx, remedy(rt.base, e), caused(attrs, err)...)
}

// isPlainNotFound reports whether e is a registry's answer that it does not have ref. The one
// for a digest may be its storage's, which speaks as any web server does.
func isPlainNotFound(e *Error, ref string) bool {
	return e.Kind == ErrNotFound && e.Status == http.StatusNotFound && (!errors.Is(e, upstream.ErrNoRegistry) || ocipath.ValidDigest(ref))
}

// remedy says what has failed at the upstream registry, which is at base, and what the operator can do.
func remedy(base *url.URL, e *Error) string {
	switch {
	case errors.Is(e, errBusy):
		return "there is no room for a fetch now: see Policy.MaxDownloads, Proxy.SpoolBytes and the disk"
	case errors.Is(e, errSecret):
		return "the credentials of the rule could not be had, and without them nothing is fetched: see Proxy.Credentials"
	case e.Kind == ErrDenied && e.Status == 0:
		return "the credentials of the rule were not sent: see err"
	case e.Kind == ErrDenied:
		return "upstream refuses access: check the credentials of the rule, and that the image is there and may be pulled with them"
	case e.Kind == ErrRateLimited:
		return "upstream limits the rate of requests: give the rule credentials of an account with a higher limit, or wait"
	case e.Kind == ErrDigest:
		return "upstream has sent content with another digest, which is not kept: it is broken, or something between changes content"
	case e.Kind == ErrTooLarge:
		return "upstream has sent content that is too large: see Policy.MaxBlobBytes"
	case e.Kind == ErrNotFound && e.Code == codeNameUnknown:
		return "the repository of an image could not be created: the Store has refused it"
	case e.Kind == ErrNotFound && e.Status == 0:
		return "upstream was asked and its answer is not used: see err"
	case e.Kind == ErrUnavailable && e.Host == "" && e.Message != "":
		return "what is not stored is not fetched: Policy.Offline is set"
	case e.Kind == ErrUnavailable && e.Host == "":
		return "a download could not be kept: see Proxy.SpoolDir, and whether its disk has room"
	case e.Status >= http.StatusInternalServerError:
		return "upstream has failed: what is stored is served, and all else when upstream works again"
	}
	return unusable(base, e)
}

// unusable is the remedy where what answers at base, if anything does, is no registry.
func unusable(base *url.URL, e *Error) string {
	_, untrusted := errors.AsType[x509.UnknownAuthorityError](e)
	switch {
	case untrusted:
		return "upstream has a certificate that is not trusted here: have this machine trust it (SSL_CERT_FILE names a file with it), or set Proxy.Transport"
	case e.Status == http.StatusBadRequest && base.Scheme == "http":
		return "upstream gives no usable answer to http: if it speaks https, write https:// in the rule's UpstreamURL"
	}
	return "upstream gives no usable answer: check that the rule's UpstreamURL is a registry that can be reached from here"
}

// named are the attributes of a line about an object.
func named(repo Repo, ref string) []any {
	attrs := make([]any, 0, 16)
	for _, pair := range [][2]string{{"account", repo.Account}, {"region", repo.Region}, {"repository", repo.Name}, {"ref", ref}} {
		if pair[1] != "" {
			attrs = append(attrs, pair[0], pair[1])
		}
	}
	return attrs
}

// caused adds the error to the attributes of a line, and where it panicked.
func caused(attrs []any, err error) []any {
	if _, where := hostcall.Failed(err); where != "" {
		attrs = append(attrs, "panicked", where)
	}
	return append(attrs, "err", err)
}

// unsetError is a sentence about a required field of the Proxy that is nil.
type unsetError string

func (e unsetError) Error() string { return string(e) }

// fetchEvent is the event of a fetch before the fetch has begun.
func (o *observer) fetchEvent(object string, part bool) *fetchEvent {
	return &fetchEvent{Trace: new(upstream.Trace), object: object, part: part, start: o.now()}
}

// fetchEvent is what is to be told of a fetch. Its Trace notes what happens upstream.
type fetchEvent struct {
	*upstream.Trace
	object      string
	part        bool
	start       time.Time
	connections int // see Event.Connections
}

// tellFetch reports the end of a fetch by the route. desc is what came; its Digest may
// be known although nothing came.
func (o *observer) tellFetch(ctx context.Context, f *fetchEvent, rt *route, ref string, desc ocispec.Descriptor, source Source, err error) {
	if err != nil {
		o.logFetch(ctx, rt, ref, err)
		err = outcome{}.words(context.Background(), rt.repo, ref, err)
	}
	facts := f.Facts()
	o.tell(ctx, Event{
		Kind: EventFetch, Request: Request{Repo: rt.repo, Ref: ref}, Object: f.object, Part: f.part, Rule: rt.prefix(),
		Digest: desc.Digest.String(), Source: source, Bytes: desc.Size,
		Duration: o.now().Sub(f.start), Err: err,
		Upstream: facts.Requests, Connections: f.connections, Anonymous: facts.Anonymous, WrongDigest: facts.WrongDigest, Warnings: facts.Warnings,
	})
}

// storeFailed reports that a call of the Store failed, and that the pull goes on without it.
func (o *observer) storeFailed(ctx context.Context, call string, repo Repo, ref string, err error) {
	o.logBroken(ctx, repo, ref, hostcall.Named(call, err))
	o.tell(ctx, Event{Kind: EventStoreFailed, Request: Request{Repo: repo, Ref: ref}, Err: err})
}

// endedSilent reports that a client's connection was ended since it read nothing.
func (o *observer) endedSilent(r *http.Request, silent time.Duration, short bool) {
	o.log.Warn("connection ended: the client reads nothing", "client", r.RemoteAddr, "path", r.URL.Path,
		"silent", silent.Round(time.Second), "descriptors short", short)
}
