package ecrapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
)

// operations are the targets that the API knows. For another one it needs a method, and
// a line here.
var operations = map[string]operation{
	"CreatePullThroughCacheRule":    of((*API).CreatePullThroughCacheRule),
	"DescribePullThroughCacheRules": of((*API).DescribePullThroughCacheRules),
	"UpdatePullThroughCacheRule":    of((*API).UpdatePullThroughCacheRule),
	"DeletePullThroughCacheRule":    of((*API).DeletePullThroughCacheRule),
	"ValidatePullThroughCacheRule":  of((*API).ValidatePullThroughCacheRule),

	"CreateRepositoryCreationTemplate":    of((*API).CreateRepositoryCreationTemplate),
	"DescribeRepositoryCreationTemplates": of((*API).DescribeRepositoryCreationTemplates),
	"UpdateRepositoryCreationTemplate":    of((*API).UpdateRepositoryCreationTemplate),
	"DeleteRepositoryCreationTemplate":    of((*API).DeleteRepositoryCreationTemplate),

	"RegisterPullTimeUpdateExclusion":   of((*API).RegisterPullTimeUpdateExclusion),
	"DeregisterPullTimeUpdateExclusion": of((*API).DeregisterPullTimeUpdateExclusion),
	"ListPullTimeUpdateExclusions":      of((*API).ListPullTimeUpdateExclusions),

	"GetRegistryPolicy":                of((*API).GetRegistryPolicy),
	"PutRegistryPolicy":                of((*API).PutRegistryPolicy),
	"DeleteRegistryPolicy":             of((*API).DeleteRegistryPolicy),
	"DescribeRegistry":                 of((*API).DescribeRegistry),
	"GetAccountSetting":                of((*API).GetAccountSetting),
	"PutAccountSetting":                of((*API).PutAccountSetting),
	"GetRegistryScanningConfiguration": of((*API).GetRegistryScanningConfiguration),
	"PutRegistryScanningConfiguration": of((*API).PutRegistryScanningConfiguration),
}

// operation reads a request's body and answers it.
type operation func(a *API, ctx context.Context, id pullthrough.Identity, body []byte) (any, error)

// of returns the operation that a method of the API implements.
func of[In, Out any](do func(*API, context.Context, pullthrough.Identity, In) (Out, error)) operation {
	return func(a *API, ctx context.Context, id pullthrough.Identity, body []byte) (any, error) {
		var in In
		if err := decode(body, &in); err != nil {
			return nil, err
		}
		return do(a, ctx, id, in)
	}
}

const (
	// targetPrefix stands before the operation in the header X-Amz-Target.
	targetPrefix = "AmazonEC2ContainerRegistry_V20150921."
	contentType  = "application/x-amz-json-1.1"
	// maxBody is far above what the members of any request may take together.
	maxBody = 1 << 20
)

// ServeHTTP answers POST requests whose X-Amz-Target is an operation of the API, on any
// path. Next gets all other requests, see [API].Next. An error is {"__type":…,"message":…} with status
// 400, or 500 for ServerException, and never 404 or 409.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !a.serve(w, r, a.Next != nil) {
		a.next(w, r)
	}
}

// TryServe answers r as ServeHTTP does, unless Next would get it. Then it reports false and
// has written nothing, and r is as it was, with its whole body: the host goes on with it. It is
// for routers that pass a request on in a way of their own, such as those of gin and echo.
// Next itself is not called.
func (a *API) TryServe(w http.ResponseWriter, r *http.Request) (handled bool) {
	return a.serve(w, r, true)
}

// serve answers r, or reports false. mayPass says that somebody else answers for the
// repositories that are not the API's.
func (a *API) serve(w http.ResponseWriter, r *http.Request, mayPass bool) (handled bool) {
	op, ours := strings.CutPrefix(r.Header.Get("X-Amz-Target"), targetPrefix)
	do, known := a.operation(op)
	if !ours || !known || r.Method != http.MethodPost || mayPass && slices.Contains(a.ToNext, op) {
		return false
	}
	id, body, err := a.read(w, r)
	if err == nil && mayPass && a.isForeign(r.Context(), id, op, body) {
		r.Body = givenBack{bytes.NewReader(body), r.Body}
		return false
	}
	var out any
	if err == nil {
		out, err = do(a, withRequest(r), id, body)
	}
	if err == nil {
		body, err = encode(out)
	}
	if err != nil {
		a.refuse(w, r, op, err)
		return true
	}
	write(w, http.StatusOK, body)
	return true
}

// givenBack is the body of a request that was read to know whose it is.
type givenBack struct {
	io.Reader
	io.Closer
}

func (a *API) next(w http.ResponseWriter, r *http.Request) {
	if a.Next != nil {
		a.Next.ServeHTTP(w, r)
		return
	}
	op, ours := strings.CutPrefix(r.Header.Get("X-Amz-Target"), targetPrefix)
	if !ours {
		op = ""
	}
	a.refuse(w, r, "", notServed(op))
}

// read returns who has sent the request, and its body.
func (a *API) read(w http.ResponseWriter, r *http.Request) (id pullthrough.Identity, body []byte, err error) {
	if id, err = a.identify(r); err != nil {
		return id, nil, err
	}
	body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	switch _, long := errors.AsType[*http.MaxBytesError](err); {
	case long:
		err = &Error{serialization, "The request is longer than " + strconv.Itoa(maxBody) + " bytes."}
	case err != nil:
		err = &Error{serialization, "The request could not be read."}
	}
	return id, body, err
}

func (a *API) identify(r *http.Request) (pullthrough.Identity, error) {
	if a.Identify == nil {
		return pullthrough.Identity{}, nil
	}
	return a.Identify(r)
}

// refuse answers with an exception. The reason of a ServerException is logged, since the
// caller does not read it.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, op string, err error) {
	e := asError(err, op)
	if e.Code == serverException && r.Context().Err() == nil {
		cmp.Or(a.Logger, slog.Default()).ErrorContext(r.Context(), "an operation has failed", "operation", op, "err", err)
	}
	body, err := encode(struct {
		Type    string `json:"__type"`
		Message string `json:"message"`
	}{e.Code, e.Message})
	if err != nil { // encoding two strings cannot fail
		panic(err)
	}
	write(w, e.status(), body)
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("X-Amzn-Requestid", requestID())
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone
}

// requestID returns a random UUID. SDKs repeat it in their errors.
func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// encode writes an answer. It does not escape for HTML, since no browser shows it.
func encode(out any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(out)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
