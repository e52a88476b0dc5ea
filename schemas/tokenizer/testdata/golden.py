"""Makes trained.json, variants.json and golden.jsonl with Hugging Face
tokenizers (0.23.3 made those here). Run in this folder: python golden.py"""

import copy, json, random
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

# trained.json: what BpeTrainer makes of the licence of this project.
text = open("../../../LICENSE", encoding="utf-8").read()
t = Tokenizer(models.BPE())
t.normalizer = normalizers.NFC()
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
t.train_from_iterator(text.splitlines(keepends=True), trainers.BpeTrainer(
    vocab_size=600, min_frequency=2, special_tokens=["<|endoftext|>", "<|padding|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
base = json.loads(t.to_str())
base["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
json.dump(base, open("trained.json", "w"), indent=1)


def added(i, content, normalized):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": False}


# variants.json: how each variant changes trained.json.
runs = [added(600 + i, " " * (8 - i), True) for i in range(7)]
variants = {
    "trained": {},
    "runs of spaces": {"added_tokens": base["added_tokens"] + runs},
    "added tokens": {"added_tokens": base["added_tokens"] + [
        added(600, "<|end|>", False), added(601, "<|end|><|end|>", False), added(602, "cafe\u0301", True), added(603, "<|", False),
        added(604, "re\u0301", False), added(605, "work", True), added(606, "working", True), added(607, "ng th", True)]},
    "prefix space": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, "added_tokens": base["added_tokens"] + runs},
    "no split": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    "no normalizer": {"normalizer": None, "added_tokens": base["added_tokens"] + [added(600, "e\u0301", True)]},
}
json.dump(variants, open("variants.json", "w"), indent=1)

fixed = ["", "a", " ", "  ", "\n", " \n \n  x", "\t\tx  y   z    w", "Hello, world!", "it's I'll we're you've I'm he'd can't IT'S", "'s''s 's' '", "don't'll",
         "x<|endoftext|>y", "<|endoftext|>", "<|endoftext|><|padding|> <|endoftext|", "<|end|><|end|><|end|> <|x", "1234567890 12 3a4b ½ ² Ⅷ ٣٤ १२",
         "café cafe\u0301 caf\u00e9s", "e\u0301\u0316 e\u0316\u0301 \u0301", "re\u0301 r\u00e9", "\u1112\u1161\u11ab 한글 \u1100\u1161", "\u212b \u2126 \u0958",
         "日本語のテキスト、中文。", "עברית العربية हिन्दी ไทย", "😀👍🏽👨‍👩‍👧‍👦 🇩🇪", "a\u00a0b\u2003c\u3000d\u0085e\u180ef\u200bg\ufeffh", "\x00\x01\x7f\x80",
         "a" * 300, "^" * 300, " " * 300, "ab" * 200, "\n" * 300, " a" * 100, "a " * 100, "license" * 40, "e" + "\u0301" * 40 + "\u0316" * 3, "\u0898\u0316\u0301a\u1ac2\u0301",
         "\U00011935\U00011930 \U00011938", "\U0001e4ec \U00010d4a1 \U000116d0", "x\u2028y\u2029 z", "ﬁ ﷺ Ǆ", "work working networking th king the", text[:1500]]
random.seed(4)
pieces = [" ", "  ", "   ", "\n", "\t", "'", "'s", "'re", "a", "B", "license", " the", "9", "é", "e\u0301", "\u0316", "\u0345", "\u0591", "ß", "中", "\u1100\u1161", "٣", "\u00a0", "\u3000", ".", "-",
          "<|", "|>", "<|endoftext|>", "<|end|>", "work", "ing", "😀", "\u200d", "\u0898", "\u09c7\u09be", "\u0b47\u0b56", "\u0301\u0300", "\u0323", "\x00", "\U0001d15e"]
fixed += ["".join(random.choice(pieces) for _ in range(random.randint(1, 30))) for _ in range(60)]
with open("golden.jsonl", "w") as f:
    for name, change in variants.items():
        d = copy.deepcopy(base)
        d.update(change)
        t = Tokenizer.from_str(json.dumps(d))
        for s in fixed:
            ids = t.encode(s).ids
            row = {"variant": name, "text": s, "ids": ids}
            if name not in ("added tokens", "no normalizer"):  # there Hugging Face's decoder takes é of an added token for a byte
                row["decoded"] = t.decode(ids, skip_special_tokens=False)
            f.write(json.dumps(row) + "\n")
