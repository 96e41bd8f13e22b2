package compare

import (
	"fmt"

	"fairlead/bench/report"
)

// wide is the product with windows of 64 MiB.
const wide = "fairlead-64MiB"

// targets are the figures that a comparison can check: those of the requirements (N1 to N5), and what the product means
// to beat.
func targets() []report.Target {
	list := []report.Target{
		{Name: "open through an idle tunnel, p95", Criterion: "N1", Metric: "opens.single.p95", Limit: 2},
		{Name: "opens a second", Criterion: "N2", Metric: "opens.per_s", Limit: 1000},
		{Name: "opens a second", Criterion: "N2", Metric: "opens.per_s", Limit: 5000, Goal: true},
		{Name: "opens a second, to a bare relay", Criterion: "N2", Metric: "opens.per_s", Limit: 0.9, Of: report.OfPeer, Peer: "relay-tcp"},
		{Name: "CPU an open, sidecar, to a bare relay", Criterion: "N5", Metric: "opens.cpu_sidecar", Limit: 1, Of: report.OfPeer, Peer: "relay-tcp"},
		{Name: "CPU an open, gateway, to a bare relay", Criterion: "N5", Metric: "opens.cpu_gateway", Limit: 1, Of: report.OfPeer, Peer: "relay-tcp"},
		{Name: "echo beside an upload that fills a slow link, idle + 100 ms", Criterion: "R5.2", Metric: "interactive.busy.p50", Limit: 100, Plus: "interactive.idle.p50"},
	}
	for _, n := range []int{1000, 10000} {
		for _, side := range []string{"sidecar", "gateway"} {
			list = append(list, report.Target{Name: fmt.Sprintf("memory a stream of %d, %s", n, side), Criterion: "N4", Metric: fmt.Sprintf("idle.%d.%s", n, side), Limit: 16})
		}
		list = append(list, report.Target{Name: fmt.Sprintf("memory a tunnel of %d", n), Criterion: "N4", Metric: fmt.Sprintf("tunnels.%d.gateway", n), Limit: 40})
	}
	for _, direction := range []string{"up", "down"} {
		for _, streams := range []int{1, 64} {
			list = append(list, throughputTargets(streams, direction)...)
		}
		rtt := "rtt." + direction + ".mb_s"
		list = append(list,
			report.Target{Name: "100 ms round trip, " + direction + ", to OpenSSH", Criterion: "N5", Metric: rtt, Limit: 3, Of: report.OfPeer, Peer: "openssh"},
			report.Target{Name: "100 ms round trip, " + direction + ", 64 MiB, to OpenSSH", Criterion: "N5", Metric: rtt, Limit: 10, Of: report.OfPeer, Peer: "openssh", Who: wide})
	}
	return list
}

func throughputTargets(streams int, direction string) []report.Target {
	cpu, rate := fmt.Sprintf("throughput.%d.%s.cpu", streams, direction), fmt.Sprintf("throughput.%d.%s.mb_s", streams, direction)
	what := fmt.Sprintf("%d %s", streams, direction)
	return []report.Target{
		{Name: "CPU a GiB, " + what + ", to the bare TLS relay", Criterion: "N5", Metric: cpu, Limit: 1.3, Of: report.OfReference},
		{Name: "CPU a GiB, " + what + ", to the bare TLS relay", Criterion: "N5", Metric: cpu, Limit: 1.1, Of: report.OfReference, Goal: true},
		{Name: "CPU a GiB, " + what + ", to chisel", Criterion: "N5", Metric: cpu, Limit: 1.0 / 3, Of: report.OfPeer, Peer: "chisel"},
		{Name: "throughput, " + what + ", to OpenSSH", Criterion: "N5", Metric: rate, Limit: 1, Of: report.OfPeer, Peer: "openssh"},
		{Name: "throughput, " + what + ", to chisel", Criterion: "N5", Metric: rate, Limit: 1, Of: report.OfPeer, Peer: "chisel"},
	}
}
