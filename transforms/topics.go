package transforms

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go"
)

// Prepare makes the topics that are not there yet, and refuses those that are
// with another number of partitions or too small a limit for the records. It
// tells notice, which may be nil, that it waits for a broker.
func (s Sink) Prepare(ctx context.Context, notice func(string)) error {
	k, err := s.open(ctx, true, notice)
	if err == nil {
		k.close()
	}
	return err
}

// open connects and checks the topics.
func (s Sink) open(ctx context.Context, create bool, notice func(string)) (_ *sink, err error) {
	k, err := s.connect()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	k.notice = notice
	there, err := k.partitions(ctx)
	if err != nil {
		return nil, err
	}
	var absent []string
	for _, topic := range s.topics() {
		n, ok := there[topic]
		if !ok {
			absent = append(absent, topic)
		} else if n != s.Partitions {
			return nil, fmt.Errorf("topic %s: it has %d partitions, want %d: ask for as many, or take another --topic", topic, n, s.Partitions)
		}
	}
	if len(absent) > 0 {
		if !create {
			return nil, fmt.Errorf("topic %s: not there: has it been deleted?", absent[0])
		}
		if err := k.create(ctx, absent); err != nil {
			return nil, err
		}
	}
	if err := k.check(ctx); err != nil {
		return nil, err
	}
	return k, nil
}

// partitions counts the partitions of those of the sink's topics that are
// there.
func (s *sink) partitions(ctx context.Context) (map[string]int, error) {
	counts := map[string]int{}
	err := s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
		r, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: s.topics()})
		if err != nil {
			return err
		}
		for _, t := range r.Topics {
			if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
				continue
			} else if t.Error != nil {
				return t.Error
			}
			counts[t.Name] = len(t.Partitions)
		}
		return nil
	})
	return counts, err
}

// create makes topics and waits until their partitions have leaders.
func (s *sink) create(ctx context.Context, topics []string) error {
	var list []kafka.TopicConfig
	for _, topic := range topics {
		list = append(list, kafka.TopicConfig{Topic: topic, NumPartitions: s.Partitions, ReplicationFactor: -1, // the broker's own default
			ConfigEntries: []kafka.ConfigEntry{
				{ConfigName: maxMessageBytes, ConfigValue: strconv.Itoa(max(s.recordBytes(), batchBytes))},
				{ConfigName: retentionMs, ConfigValue: "-1"}, // a trainer that comes late still needs the first record
				// by the brokers' clock: a record that a wrong clock has stamped is
				// refused, if it is of the future, or deleted at once where records
				// are deleted by their age
				{ConfigName: timestampType, ConfigValue: logAppendTime},
			}})
	}
	err := s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
		r, err := c.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: list})
		if err != nil {
			return err
		}
		for _, topic := range topics {
			if err := r.Errors[topic]; err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
				return fmt.Errorf("topic %s: %w", topic, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
		r, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
		if err != nil {
			return err
		}
		led := 0
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				if t.Error == nil && p.Error == nil && p.Leader.Host != "" {
					led++
				}
			}
		}
		if led < len(topics)*s.Partitions {
			return kafka.LeaderNotAvailable
		}
		return nil
	})
}

// The settings of a topic that records depend on.
const (
	maxMessageBytes = "max.message.bytes"
	retentionMs     = "retention.ms"
	retentionBytes  = "retention.bytes"
	cleanupPolicy   = "cleanup.policy"
	timestampType   = "message.timestamp.type"

	logAppendTime = "LogAppendTime"
)

// check refuses topics that would not take the records or not keep them.
func (s *sink) check(ctx context.Context) error {
	all, err := s.settings(ctx)
	if err != nil {
		return err
	}
	s.limits = map[string]int{}
	for _, topic := range s.topics() {
		set := all[topic]
		limit, err := strconv.Atoi(set[maxMessageBytes])
		if err != nil {
			return fmt.Errorf("topic %s: the broker does not tell its %s", topic, maxMessageBytes)
		}
		if need := s.recordBytes(); limit < need {
			return fmt.Errorf("topic %s: its max.message.bytes is %d, but a record of %d × %d %s takes up to %d: raise the topic's limit, or take another --topic or --dtype",
				topic, limit, s.Length, s.Dim, s.Type, need)
		}
		s.limits[topic] = limit
		if policy := set[cleanupPolicy]; strings.Contains(policy, "compact") {
			return fmt.Errorf("topic %s: its cleanup.policy is %s: it would drop a sequence's record of all epochs but the last: set it to delete, or take another --topic", topic, policy)
		}
		if s.AllowRetention {
			if set[retentionMs] != "-1" && set[timestampType] != logAppendTime && s.notice != nil {
				s.notice(fmt.Sprintf("topic %s: its retention.ms is %s, counted by this machine's clock: were that wrong, records would go at once: set the topic's message.timestamp.type to %s", topic, set[retentionMs], logAppendTime))
			}
			continue
		}
		if ms := set[retentionMs]; ms != "-1" {
			return fmt.Errorf("topic %s: its retention.ms is %s: records may go before a trainer reads them: set it to -1, or go on with --allow-retention", topic, ms)
		}
		if bytes, err := strconv.ParseInt(set[retentionBytes], 10, 64); err == nil && bytes >= 0 && bytes < s.TopicBytes {
			if s.TopicBytes == Endless {
				return fmt.Errorf("topic %s: its retention.bytes is %d, and the token set grows: records may go before a trainer reads them: set it to -1, or go on with --allow-retention", topic, bytes)
			}
			return fmt.Errorf("topic %s: its retention.bytes is %d, and a partition may come to %d: records may go before a trainer reads them: set it to -1, or go on with --allow-retention", topic, bytes, s.TopicBytes)
		}
	}
	return nil
}

// settings are those of every topic, by name.
func (s *sink) settings(ctx context.Context) (map[string]map[string]string, error) {
	var resources []kafka.DescribeConfigRequestResource
	for _, topic := range s.topics() {
		resources = append(resources, kafka.DescribeConfigRequestResource{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
			ConfigNames: []string{maxMessageBytes, retentionMs, retentionBytes, cleanupPolicy, timestampType}})
	}
	all := map[string]map[string]string{}
	err := s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
		r, err := c.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: resources})
		if err != nil {
			return err
		}
		for _, t := range r.Resources {
			if t.Error != nil {
				return fmt.Errorf("topic %s: %w", t.ResourceName, t.Error)
			}
			all[t.ResourceName] = map[string]string{}
			for _, e := range t.ConfigEntries {
				all[t.ResourceName][e.ConfigName] = e.ConfigValue
			}
		}
		return nil
	})
	return all, err
}
