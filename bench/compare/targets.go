package compare

import (
	"fmt"

	"fairlead/bench/report"
)

// targets are the figures of the requirements (N1 to N5) that a comparison can check.
func targets() []report.Target {
	list := []report.Target{
		{Name: "open through an idle tunnel, p95", Criterion: "N1", Metric: "opens.single.p95", Limit: 2},
		{Name: "opens a second", Criterion: "N2", Metric: "opens.per_s", Limit: 1000},
		{Name: "opens a second", Criterion: "N2", Metric: "opens.per_s", Limit: 5000, Goal: true},
	}
	for _, n := range []int{1000, 10000} {
		for _, side := range []string{"sidecar", "gateway"} {
			metric, what := fmt.Sprintf("idle.%d.%s", n, side), fmt.Sprintf("memory a stream of %d, %s", n, side)
			list = append(list,
				report.Target{Name: what, Criterion: "N4", Metric: metric, Limit: 1e6 / 1024}, // 100 MB for 100
				report.Target{Name: what, Criterion: "N4", Metric: metric, Limit: 16, Goal: true})
		}
		list = append(list, report.Target{Name: fmt.Sprintf("memory a tunnel of %d", n), Criterion: "N4",
			Metric: fmt.Sprintf("tunnels.%d.gateway", n), Limit: 64, Goal: true})
	}
	for _, streams := range []int{1, 64} {
		for _, direction := range []string{"up", "down"} {
			metric, what := fmt.Sprintf("throughput.%d.%s.cpu", streams, direction), fmt.Sprintf("CPU a GiB, %d %s", streams, direction)
			list = append(list,
				report.Target{Name: what + ", to the bare relay", Criterion: "N5", Metric: metric, Limit: 1.5, Of: report.OfReference},
				report.Target{Name: what + ", to the best peer", Criterion: "N5", Metric: metric, Limit: 1, Of: report.OfBestPeer})
		}
	}
	return list
}
