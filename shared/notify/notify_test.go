package notify_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"fairlead/shared/notify"
)

func TestEverybodyIsTold(t *testing.T) {
	var list notify.List[string]
	list.Tell("nobody listens")
	var heard []string
	listen := func(name string) (stop func()) {
		return list.Add(func(what string) { heard = append(heard, name+" "+what) })
	}
	stopA, stopB := listen("a"), listen("b")
	list.Tell("1")
	stopA()
	stopA()
	list.Tell("2")
	listen("c")
	list.Tell("3")
	stopB()
	list.Tell("4")
	assert.Equal(t, []string{"a 1", "b 1", "b 2", "b 3", "c 3", "c 4"}, heard)
}

func TestListenersMayComeAndGoWhileTheyAreTold(t *testing.T) {
	var list notify.List[int]
	var heard []int
	var stop func()
	stop = list.Add(func(n int) {
		heard = append(heard, n)
		stop()
		list.Add(func(n int) { heard = append(heard, -n) })
	})
	list.Tell(1)
	list.Tell(2)
	assert.Equal(t, []int{1, -2}, heard)
}

func TestIsSafeForConcurrentUse(t *testing.T) {
	const tellers, each = 4, 200
	var list notify.List[int]
	var mu sync.Mutex
	heard := 0
	list.Add(func(n int) {
		mu.Lock()
		defer mu.Unlock()
		heard += n
	})
	var tasks sync.WaitGroup
	for range tellers {
		tasks.Go(func() {
			for range each {
				stop := list.Add(func(int) {})
				list.Tell(1)
				stop()
			}
		})
	}
	tasks.Wait()
	assert.Equal(t, tellers*each, heard)
}
