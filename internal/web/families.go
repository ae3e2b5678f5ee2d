package web

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// A family is a metric, with the labels that its series differ by.
type family struct {
	name string
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// families are all that there are.
var families []family

func define(kind prometheus.ValueType, name, help string, labels []string) family {
	name = "sluice_" + name
	f := family{name, prometheus.NewDesc(name, help, labels, nil), kind}
	families = append(families, f)
	return f
}

// gauge and counter define a metric.
func gauge(name, help string, labels ...string) family {
	return define(prometheus.GaugeValue, name, help, labels)
}

func counter(name, help string, labels ...string) family {
	return define(prometheus.CounterValue, name, help, labels)
}

// A sink takes the values of a scrape.
type sink chan<- prometheus.Metric

// put gives a series its value.
func (s sink) put(f family, value float64, labels ...string) {
	for i := range labels {
		labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD")
	}
	s <- prometheus.MustNewConstMetric(f.desc, f.kind, value, labels...)
}

// count is put for counters.
func (s sink) count(f family, value uint64, labels ...string) { s.put(f, float64(value), labels...) }

// state puts 1 for the one of several values of the last label that is, and 0 for the
// others.
func (s sink) state(f family, is string, all []string, labels ...string) {
	for _, state := range all {
		s.put(f, truth(state == is), append(labels[:len(labels):len(labels)], state)...)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
