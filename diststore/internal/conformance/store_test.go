package conformance_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestStoreOnS3(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	var buckets atomic.Int64
	pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
		s := diststore.New(open(t, server.bucket(t, fmt.Sprintf("suite-%d", buckets.Add(1)))))
		s.Account, s.Region = "111122223333", "us-east-1"
		return s
	})
}
