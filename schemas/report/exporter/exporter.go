// Package exporter serves what a running command tells of itself: Prometheus
// metrics at /metrics, with those of the Go runtime and the process, and a line
// for people and probes at /healthz.
package exporter

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Exporter is a server until Close.
type Exporter struct {
	server *http.Server
	ended  chan struct{}
}

// Serve begins to serve collectors at an address, host:port. health says how
// far the command is; it is called by several goroutines, as collectors are.
func Serve(address string, health func() string, list ...prometheus.Collector) (*Exporter, error) {
	r := prometheus.NewRegistry()
	for _, c := range append(list, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("--metrics: %w", err)
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "ok: %s\n", health()) })
	e := &Exporter{&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, make(chan struct{})}
	go func() {
		defer close(e.ended)
		e.server.Serve(l) // until Close
	}()
	return e, nil
}

// Close ends the server.
func (e *Exporter) Close() error {
	err := e.server.Close()
	<-e.ended
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}
