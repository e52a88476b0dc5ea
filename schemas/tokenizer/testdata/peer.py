"""Encodes what peer_test.go sends with other people's tokenizers, for
comparison. Needs the PyPI package tokenizers; tiktoken and bpe-openai where
their speed is asked for. Run by the test, with the tokenizer.json as argument.

A request on stdin is a line `<command> <documents>` and, for each document, a
little-endian uint32 of bytes and the UTF-8 text. Answers on stdout:
encode  for each document a uint32 of ids and the ids as uint32
time    a line of JSON: seconds of each way to encode all documents, by the
        clock and of processor time"""

import json, os, struct, sys, time
from array import array

os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["RAYON_NUM_THREADS"] = "2"
import tokenizers

hf = tokenizers.Tokenizer.from_file(sys.argv[1])
inp, out = sys.stdin.buffer, sys.stdout.buffer


def tiktoken_twin():
    """The same vocabulary in tiktoken, whose merges go by rank of the result."""
    import tiktoken
    model = json.load(open(sys.argv[1], encoding="utf-8"))["model"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in printable)}
    ranks, merges = {}, [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    for token in [*byte, *("".join(m) for m in merges)]:
        ranks.setdefault(bytes(byte[c] for c in token), len(ranks))
    return tiktoken.Encoding("neox", pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""", mergeable_ranks=ranks, special_tokens={})


def ways(docs):
    yield "Hugging Face tokenizers, one document after the other", lambda: [hf.encode(d) for d in docs]
    yield "Hugging Face tokenizers, batches on two threads", lambda: [hf.encode_batch_fast(docs[i:i + 1000]) for i in range(0, len(docs), 1000)]
    try:
        twin = tiktoken_twin()
        yield "tiktoken, the same vocabulary", lambda: [twin.encode_ordinary(d) for d in docs]
    except ImportError:
        pass
    try:
        import bpe_openai
        bpe = bpe_openai.get_encoding("cl100k_base")
        yield "the bpe crate, its own cl100k", lambda: [bpe.encode(d) for d in docs]
    except ImportError:
        pass


while line := inp.readline():
    command, n = line.split()
    docs = [inp.read(struct.unpack("<I", inp.read(4))[0]).decode("utf-8") for _ in range(int(n))]
    if command == b"encode":
        for e in hf.encode_batch_fast(docs):
            ids = array("I", e.ids)
            out.write(struct.pack("<I", len(ids)) + ids.tobytes())
    elif command == b"time":
        seconds = {}
        for name, way in ways(docs):
            start, used = time.perf_counter(), time.process_time()
            way()
            seconds[name] = [time.perf_counter() - start, time.process_time() - used]
        out.write(json.dumps({"versions": tokenizers.__version__, "seconds": seconds}).encode() + b"\n")
    out.flush()
