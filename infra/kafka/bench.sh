#!/bin/sh
# Measures the feed over a real Kafka, all in one run: Kafka's own tools, kafka-go
# alone, the teacher's sink and the trainers' sources, with records of the
# paper's size (1 MiB) in four partitions.
#
#   infra/kafka/bench.sh FOLDER [PORT]
#
# start.sh FOLDER [PORT] has to be running. Figures are MB/s of 10^6 bytes. Ours
# and kafka-go's are medians of nine rounds in which they take turns.
set -eu
cd "$(dirname "$0")/../.."
folder=${1:?usage: bench.sh FOLDER [PORT]}
port=${2:-29092}
topic=perf-$(date +%s)
tool() { java -Xmx512m -cp "$folder/libs/*" "$@" 2>/dev/null; }
tool org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$port" --create --topic "$topic" --partitions 4 --config max.message.bytes=8388608 >/dev/null
echo "Kafka's own producer, acks=all:"
tool org.apache.kafka.tools.ProducerPerformance --topic "$topic" --num-records 600 --record-size 1048576 --throughput -1 \
  --producer-props bootstrap.servers="127.0.0.1:$port" acks=all batch.size=8388608 max.request.size=8388608 linger.ms=5 buffer.memory=134217728 |
  tail -1 | sed 's/.*(\([0-9.]*\) MB\/sec).*/\1/' | awk '{printf "  %.0f MB/s\n", $1 * 1.048576}'
echo "Kafka's own consumer:"
tool org.apache.kafka.tools.ConsumerPerformance --topic "$topic" --bootstrap-server "127.0.0.1:$port" --messages 600 --fetch-size 8388608 --hide-header |
  tail -1 | awk -F', ' '{printf "  %.0f MB/s, joining the group aside\n", $9 * 1.048576}'
tool org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$port" --delete --topic "$topic" >/dev/null
export CGO_ENABLED=0 SCAVENGE_KAFKA="127.0.0.1:$port"
go test -tags integration ./transforms ./trainers -run '^$' -bench Feed -benchtime 9x
