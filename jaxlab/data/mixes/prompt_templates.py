"""How TÜLU 1 asks what single-turn sets ask: one of 14 phrasings with an input, or 14.

Wang et al. 2023 (arXiv:2306.04751) draw one for each instance, so that a model does not
learn one phrasing; these are the published program's, with its weights and its
misspelling. Where the prompt is the instruction alone, the answer begins with a line's
end.
"""

import random

_WITH_INPUT = (
    ("{instruction}\n\n{input}\n\n", 4),
    ("{instruction}\n{input}\n\n", 2),
    ("{instruction}\n{input}\n", 2),
    ("{instruction}\n\nInput: {input}\n\nOutput:", 1),
    ("{instruction}\nInput: {input}\nOutput:", 1),
    ("{instruction}\n{input}\n\nResponse:", 1),
    ("{instruction}\n\nAdditional Context:\n{input}\n\nAnswer:", 1),
    ("Task: {instruction}\nInput: {input}\nOutput:", 1),
    ("Task: {instruction}\n\n{input}\n\n", 1),
    ("Task: {instruction}\n\n{input}\n\nAnswer:", 1),
    (
        "You need to complete the following task:\n\n{instruction}\n\n{input}\n\n"
        "Answer:",
        1,
    ),
    (
        "{instruction}\n\nNow complete the following instance -\nInput: {input}\n"
        "Output:",
        1,
    ),
    ("Instruction:{instruction}\n\nInput: {input}\n\n", 1),
    (
        "Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
        "### Response:",
        2,
    ),
)
_BARE = "{instruction}"
_WITHOUT_INPUT = (
    ("{instruction}\n\n", 4),
    ("{instruction}\n", 2),
    (_BARE, 2),
    ("{instruction} Output:", 1),
    ("{instruction}\nResponse:", 1),
    ("{instruction}\n\nAnswer:", 1),
    ("Task: {instruction}\n\n", 1),
    ("Instruction: {instruction}\n", 1),
    ("Instruction: {instruction}\nOutput:", 1),
    ("You need to complete the following task:\n\n{instruction}\n\n", 1),
    ("Can you help with this?\n\n{instruction}\n", 1),
    ("Plase answer the following request: {instruction}\nAnswer:", 1),
    ("Tell me how would you respond to the following request.\n{instruction}\n", 1),
    (
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:",
        2,
    ),
)


def ask(
    instruction: str, more: str, answer: str, draw: random.Random
) -> tuple[str, str]:
    """(prompt, answer) in a phrasing that `draw` chooses.

    >>> ask("Add.", "1 and 2", "3", random.Random(1))
    ('Add.\\n\\n1 and 2\\n\\n', '3')
    """
    instruction, more, answer = instruction.strip(), more.strip(), answer.strip()
    templates = _WITH_INPUT if more else _WITHOUT_INPUT
    phrasings, weights = zip(*templates, strict=True)
    (template,) = draw.choices(phrasings, weights)
    # Not `format`: the texts may hold braces.
    parts = template.split("{input}")
    prompt = more.join(part.replace(_BARE, instruction) for part in parts)
    return prompt, "\n" + answer if template == _BARE else answer


def show(instruction: str, examples: list[tuple[str, str]], more: str) -> str:
    """A prompt that shows examples, (input, output), before it asks."""
    shown = [f"Input:\n{a.strip()}\nOutput:\n{b.strip()}\n\n" for a, b in examples]
    asked = f"Input:\n{more.strip()}\nOutput:\n"
    return f"{instruction.strip()}\n\n{''.join(shown)}{asked}"
