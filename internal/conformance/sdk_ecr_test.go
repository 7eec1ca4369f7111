package conformance_test

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What fakeecr is told of secrets, and how rules name them: with or without the six
// characters that Secrets Manager puts at their end.
const (
	hubSecret  = "ecr-pullthroughcache/hub"
	ghcrSecret = "ecr-pullthroughcache/ghcr"
	secretARNs = "arn:aws:secretsmanager:us-east-1:123456789012:secret:"
	hubARN     = secretARNs + hubSecret
	ghcrARN    = secretARNs + ghcrSecret + "-AbCdEf"
	roleARN    = "arn:aws:iam::123456789012:role/pull"
	hubToken   = "canary-hub-token"
)

// fakeAWS is a fake ECR as clients see it, with the SDK before it. Its quay.io is an
// open upstream, its registry-1.docker.io one that wants the secret.
type fakeAWS struct {
	*ecr.Client
	url       string
	quay, hub *pullthroughtest.Upstream
}

// startAWS starts one. What the SDK asks for is recorded in log.
func startAWS(t *testing.T, log *sdkLog) *fakeAWS {
	t.Helper()
	f := &fakeAWS{
		quay: pullthroughtest.New(t, pullthroughtest.Config{}),
		hub:  pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"robot": hubToken}}),
	}
	f.url = serveAWS(t,
		map[string]string{"quay.io": f.quay.URL, "registry-1.docker.io": f.hub.URL},
		map[string]string{hubSecret: "robot:" + hubToken, ghcrSecret: "robot:canary-ghcr-token"})
	f.Client = log.client(f.url)
	return f
}

// serveAWS has fakeecr serve an ECR whose upstreams are elsewhere, and returns its
// URL.
func serveAWS(t *testing.T, endpoints, secrets map[string]string) string {
	t.Helper()
	var args []string
	for host, url := range endpoints {
		args = append(args, "-endpoint", host+"="+url)
	}
	for name, value := range secrets {
		args = append(args, "-secret", name+"="+value)
	}
	return "http://" + runFakeECR(t, args...).host
}

// sdkLog is what the SDK was answered: for each operation the exceptions, "" for
// answers that are none, and the failure codes in them.
type sdkLog struct {
	mu   sync.Mutex
	seen map[string]map[string]bool
}

// client is the SDK before an ECR.
func (l *sdkLog) client(url string) *ecr.Client {
	o := sdkOptions(url)
	o.APIOptions = append(o.APIOptions, func(s *middleware.Stack) error {
		return s.Initialize.Add(middleware.InitializeMiddlewareFunc("record", l.record), middleware.Before)
	})
	return ecr.New(o)
}

func (l *sdkLog) record(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
	out, metadata, err := next.HandleInitialize(ctx, in)
	var exception string
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		exception = e.ErrorCode()
	}
	l.add(awsmiddleware.GetOperationName(ctx), exception)
	switch out := out.Result.(type) {
	case *ecr.BatchGetImageOutput:
		for _, failure := range out.Failures {
			l.add("ImageFailureCode", string(failure.FailureCode))
		}
	case *ecr.BatchDeleteImageOutput:
		for _, failure := range out.Failures {
			l.add("ImageFailureCode", string(failure.FailureCode))
		}
	case *ecr.BatchCheckLayerAvailabilityOutput:
		for _, failure := range out.Failures {
			l.add("LayerFailureCode", string(failure.FailureCode))
		}
		for _, layer := range out.Layers {
			l.add("LayerAvailability", string(layer.LayerAvailability))
		}
	}
	return out, metadata, err
}

func (l *sdkLog) add(op, exception string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[string]map[string]bool{}
	}
	if l.seen[op] == nil {
		l.seen[op] = map[string]bool{}
	}
	l.seen[op][exception] = true
}

// recent stands for a time of the last minute in what assertAnswer wants.
var recent = new(time.Time)

// assertAnswer compares an answer, given as a pointer, member by member, absent ones
// included.
func assertAnswer(t *testing.T, want, got any) {
	t.Helper()
	levelTimes(t, reflect.ValueOf(got))
	assert.Equal(t, want, got)
}

// levelTimes puts recent for all times, and drops what is about the request.
func levelTimes(t *testing.T, v reflect.Value) {
	t.Helper()
	if at, ok := v.Interface().(*time.Time); ok && at != nil {
		assert.WithinRange(t, *at, time.Now().Add(-time.Minute), time.Now().Add(time.Second))
		v.Set(reflect.ValueOf(recent))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			levelTimes(t, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			levelTimes(t, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			switch field := v.Field(i); {
			case field.Type() == reflect.TypeFor[middleware.Metadata]():
				field.SetZero()
			case field.CanSet():
				levelTimes(t, field)
			}
		}
	}
}

// assertException asserts that the SDK says E, with exactly that message, for an
// answer with status 400 and a request's id.
func assertException[E smithy.APIError](t *testing.T, err error, message string) {
	t.Helper()
	e, ok := errors.AsType[E](err)
	if !assert.True(t, ok, "want %T, got %v", e, err) {
		return
	}
	assert.Equal(t, message, e.ErrorMessage())
	answer, ok := errors.AsType[*awshttp.ResponseError](err)
	require.True(t, ok)
	assert.Equal(t, 400, answer.HTTPStatusCode())
	assert.NotEmpty(t, answer.ServiceRequestID())
}

// constraint is ECR's sentence for a value that breaks the model.
func constraint(at, text string) string {
	return "Invalid parameter at '" + at + "' failed to satisfy constraint: '" + text + "'"
}

// str is a member that is sent.
func str(s string) *string { return aws.String(s) }
