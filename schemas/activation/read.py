#!/usr/bin/env python3
"""Reads activation and token records from Kafka, as an example for other languages.

    pip install kafka-python numpy
    python read.py --brokers 127.0.0.1:9092 --topic demo.layer-0 --limit 3

schemas/activation.proto is the format; a Protobuf compiler makes a reader of it
in any language. This one needs none: a record is fifteen fields. Use it as a
module, too:

    for record in read("127.0.0.1:9092", "demo.layer-0"):
        record["values"]    # float32 array, tokens x width; None in token records

Messages come in the order of each partition; a producer that had to try again
may have written one twice, so drop what has an (epoch, sequence) seen before.
"""
import argparse
import json
import struct

import numpy as np

TYPES = {1: np.dtype("<f4"), 2: np.dtype("<f2"), 3: np.dtype("<u2"), 4: np.dtype("i1")}  # FLOAT32, FLOAT16, BFLOAT16 (upper halves), INT8
CONTROLS = {0: None, 1: "end of epoch", 2: "end of stream"}
NAMES = {0: None, 1: "float32", 2: "float16", 3: "bfloat16", 4: "int8"}


def varint(data, at):
    """A Protobuf varint at an offset, and the offset behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """The fields of a Protobuf message: pairs of number and value."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire == 2:
            size, at = varint(data, at)
            if at + size > len(data):
                raise ValueError("the record is cut short")
            value, at = data[at:at + size], at + size
        elif wire == 5:
            value, at = struct.unpack_from("<I", data, at)[0], at + 4
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        yield number, value


def table():
    t = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        t.append(n)
    return t


CASTAGNOLI = table()


def crc32c(data):
    """CRC-32C. Plain Python: about a second a megabyte (PyPI's google-crc32c is fast)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CASTAGNOLI[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def parse(data, check=True):
    """A record as a dict; check=False leaves the checksum alone."""
    f = dict(fields(data))
    control = f.get(14, 0)
    if f.get(1) != (2 if control else 1):
        raise ValueError(f"version {f.get(1)}: this program reads version 1, and 2 of control records")
    length, dim, kind = f.get(7, 0), f.get(8, 0), f.get(9, 0)
    tokens, at = [], 0
    packed = f.get(10, b"")
    while at < len(packed):
        token, at = varint(packed, at)
        tokens.append(token)
    tokens = np.array(tokens, dtype="<i4")
    scales = np.frombuffer(f.get(11, b""), dtype="<f4")
    raw = f.get(13, b"")
    if check:
        head = struct.pack("<7Q", f[1], f.get(4, 0), f.get(5, 0), f.get(6, 0), length, dim, kind)
        tail = struct.pack("<2Q", control, f.get(15, 0)) if control else b""
        if crc32c(head + tokens.tobytes() + scales.tobytes() + raw + tail) != f.get(12, 0):
            raise ValueError("the record is damaged: its checksum does not fit")
    values = None
    if kind and not control:
        values = np.frombuffer(raw, dtype=TYPES[kind]).reshape(length, dim)
        if kind == 3:
            values = (values.astype("<u4") << 16).view("<f4")
        values = values.astype("f4")
        if kind == 4:
            values *= scales[:, None]
    return {
        "teacher": f.get(2, b"").decode(), "token_set": f.get(3, b"").decode(), "layer": f.get(4, 0), "epoch": f.get(5, 0),
        "sequence": f.get(6, 0), "type": NAMES[kind], "tokens": tokens, "values": values,
        "control": CONTROLS[control], "records": f.get(15, 0),
    }


def read(brokers, topic, check=True, controls=False, **more):
    """All records that a topic holds now, with controls those that tell of the others too; more goes to KafkaConsumer (security_protocol, ssl_cafile, sasl_mechanism, ...)."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=brokers.split(","), enable_auto_commit=False, max_partition_fetch_bytes=64 << 20, fetch_max_bytes=64 << 20, **more)
    try:
        parts = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or [])]
        if not parts:
            raise SystemExit(f"topic {topic}: not there")
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        end = consumer.end_offsets(parts)
        while any(consumer.position(p) < end[p] for p in parts):
            for messages in consumer.poll(timeout_ms=1000).values():
                for m in messages:
                    record = parse(m.value, check)
                    if controls or not record["control"]:
                        yield {**record, "partition": m.partition, "offset": m.offset}
    finally:
        consumer.close()


def main():
    p = argparse.ArgumentParser(description="Prints the records of a topic as JSON lines, without their values.")
    p.add_argument("--brokers", required=True, help="host:port, several with commas")
    p.add_argument("--topic", required=True, help="<run>.layer-<i> or <run>.tokens")
    p.add_argument("--limit", type=int, default=None, help="stop after so many records")
    p.add_argument("--no-check", action="store_true", help="leave the checksums alone")
    a = p.parse_args()
    for n, r in enumerate(read(a.brokers, a.topic, not a.no_check)):
        if n == a.limit:
            break
        v = r.pop("values")
        r["tokens"] = r["tokens"].tolist()
        if v is not None:
            r["shape"], r["mean"], r["last"] = list(v.shape), float(v.mean(dtype="f8")), float(v[-1, -1])
        print(json.dumps(r))


if __name__ == "__main__":
    main()
