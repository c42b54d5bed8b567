"""A tokenizer without a model: one id per byte."""


class Letters:
    """id = byte + 3."""

    vocab_size, bos_id, eos_id, pad_id, fingerprint = 259, None, 2, 1, "letters"

    def encode(self, text, *, special=False):
        return [byte + 3 for byte in text.encode()]

    def encode_batch(self, texts, *, special=False):
        return [self.encode(text) for text in texts]

    def decode(self, ids, *, special=False):
        return bytes(i - 3 for i in ids if i >= 3).decode()

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
