package infra

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What the compose file sets is what server.properties sets, with which the
// tests run a Kafka, but for addresses and folders.
func TestComposeFileSetsWhatTheTestsRunWith(t *testing.T) {
	data, err := os.ReadFile("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Image       string
			Ports       []string
			Environment map[string]string
			Volumes     []string
			Healthcheck struct {
				Test              []string
				Interval, Timeout string
				Retries           int
			}
		}
		Volumes map[string]any
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile("kafka/server.properties")
	if err != nil {
		t.Fatal(err)
	}
	properties := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			properties[key] = value
		}
	}
	pom, err := os.ReadFile("kafka/pom.xml")
	if err != nil {
		t.Fatal(err)
	}
	kafka := file.Services["kafka"]
	if _, version, _ := strings.Cut(kafka.Image, ":"); !strings.Contains(string(pom), "<version>"+version+"</version>") {
		t.Errorf("image %s is of another version than pom.xml", kafka.Image)
	}
	for _, p := range kafka.Ports {
		if !strings.HasPrefix(p, "127.0.0.1:") {
			t.Errorf("port %s is open to the network", p)
		}
	}
	here := map[string]bool{"listeners": true, "advertised.listeners": true, "controller.quorum.voters": true, "listener.security.protocol.map": true, "log.dirs": true}
	set := map[string]bool{}
	for name, value := range kafka.Environment {
		key := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "KAFKA_"), "_", "."))
		set[key] = true
		if want, ok := properties[key]; !ok || !here[key] && value != want {
			t.Errorf("%s is %q, server.properties has %s=%s", name, value, key, want)
		}
	}
	for key, value := range properties {
		if secure := strings.HasPrefix(key, "ssl.") || strings.HasPrefix(key, "listener.name."); !set[key] && !secure {
			t.Errorf("server.properties has %s=%s, compose.yaml has none", key, value)
		}
	}
}
