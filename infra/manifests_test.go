package infra_test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/scavenge/scavenge/pipelines"
	"github.com/scavenge/scavenge/trainers"
)

// What the manifests call the commands with is what the commands take, the
// environment that they set included. (.ci/run checks them against Kubernetes'
// schemas.)
func TestManifestsCallTheCommandsWithFlagsThatThereAre(t *testing.T) {
	data, err := os.ReadFile("kubernetes/scavenge.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type container struct {
		Name string
		Args []string
	}
	var list []container
	environment := map[string]string{}
	for d := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var m struct {
			Kind string
			Data map[string]string
			Spec struct {
				Template struct {
					Spec struct{ Containers []container }
				}
			}
		}
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, m.Spec.Template.Spec.Containers...)
		for name, value := range m.Data {
			environment[name] = value
		}
	}
	for name, value := range environment {
		t.Setenv(name, value)
	}
	called := map[string]bool{}
	for _, c := range list {
		called[c.Name] = true
		f := flag.NewFlagSet(c.Name, flag.ContinueOnError)
		f.SetOutput(io.Discard)
		var check func() error
		switch c.Name {
		case "teach":
			var o pipelines.TeachOptions
			o.Flags(f)
			check = func() error { return o.Validate() }
		case "distill":
			var o trainers.DistillOptions
			o.Flags(f)
			check = func() error { return o.Validate() }
		default:
			t.Fatalf("container %s", c.Name)
		}
		var args []string
		for _, a := range c.Args {
			args = append(args, strings.NewReplacer("$(BROKERS)", environment["BROKERS"], "$(INDEX)", "1").Replace(a))
		}
		if err := f.Parse(args); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		if err := check(); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		if f.Lookup("tls").Value.String() != "true" || f.Lookup("sasl").Value.String() != "scram-sha-512" {
			t.Errorf("%s does not take the environment", c.Name)
		}
	}
	if !called["teach"] || !called["distill"] {
		t.Errorf("the manifests call %v", called)
	}
}
