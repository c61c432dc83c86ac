"""Questions and answers made from pages by fixed rules, and everything that is trained on."""

import random
from dataclasses import dataclass
from pydoc_data.topics import topics

from bench.tiny.pages import Entry, written_in_c, written_in_python
from bench.tiny.tokens import ASSISTANT, END, SYSTEM, THINK, THOUGHT, USER

GREETINGS = [
    ("Hello!", "Hello! What would you like to know about Python?"),
    ("Hi", "Hi! Ask me about a module, a class or a function."),
    ("Hi there, how are you?", "I am well, thank you. I am a very small model. How can I help?"),
    ("Good morning", "Good morning! What can I do for you?"),
    ("Hey", "Hey! What are you looking for?"),
    ("Thank you!", "You are welcome."),
    ("Thanks, that helped.", "I am glad that it helped."),
    ("Goodbye", "Goodbye!"),
    ("Bye!", "Bye! Come back soon."),
    (
        "Who are you?",
        "I am a tiny language model that comes with sloserve. I talk about Python's standard "
        "library, and I am often wrong.",
    ),
    (
        "What can you do?",
        "I can talk about Python's modules, classes and functions. I am small, so please check "
        "what I say.",
    ),
    ("What is your name?", "I have no name. I am the tiny model that comes with sloserve."),
    ("Are you a large language model?", "No, I am a very small one: about five million weights."),
    ("Tell me a story.", "Once upon a time there was a module that was imported by everyone."),
    ("Say hello.", "Hello!"),
    ("What is the capital of France?", "I only know a little about Python. Please ask another."),
    ("Can you help me?", "I can try. What do you want to know about Python?"),
    ("Write a poem.", "Beautiful is better than ugly, explicit is better than implicit."),
]
SYSTEMS = [
    "You are a helpful assistant.",
    "You are an assistant who knows Python's standard library.",
    "Answer briefly.",
    "You are a helpful, honest and friendly assistant.",
]
THINKERS = ["Think before you answer.", "Think step by step.", "Think first."]


def ask(entry: Entry, rng: random.Random) -> str:
    """A question about an entry."""
    what = {"module": "module", "class": "class"}.get(entry.kind, entry.kind)
    forms = {
        "module": ["What is the {n} module for?", "What does the {n} module do?", "What is {n}?"],
        "class": ["What is {n}?", "What is the class {n} for?", "Describe {n}."],
    }.get(entry.kind, ["What does {n} do?", "What does {n}() do?", "How does {n} work?"])
    forms = [*forms, "Explain {n}.", "Tell me about {n}.", f"What is the {what} {{n}}?"]
    return rng.choice(forms).format(n=entry.name)


def thought(entry: Entry, rng: random.Random) -> str:
    """What the model thinks before it answers, in one to three sentences."""
    parent, _, leaf = entry.name.rpartition(".")
    lines = [
        rng.choice(["The user asks about {n}.", "This is a question about {n}.", "I look for {n}."])
    ]
    if parent:
        lines.append(
            rng.choice(["It is a {k} of {p}.", "{l} is a {k} in {p}.", "The {k} belongs to {p}."])
        )
    else:
        lines.append("It is a {k}.")
    if entry.signature and rng.random() < 0.6:
        arguments = entry.signature.strip("()") or "no arguments"
        lines.append(f"It takes {arguments}.".replace("{", "").replace("}", ""))
    lines.append(rng.choice(["I say what it does.", "The answer can be short.", "I recall it."]))
    return " ".join(lines).format(n=entry.name, k=entry.kind, p=parent, l=leaf)


def turn(question: str, answer: str) -> str:
    """One question with its answer, in the form that the chat template writes."""
    return f"{USER}\n{question}{END}\n{ASSISTANT}\n{answer}{END}\n"


def conversation(entries: list[Entry], rng: random.Random) -> str:
    """A chat of one to three turns; about a third thinks in its last turn."""
    system = rng.choice(SYSTEMS) if rng.random() < 0.4 else ""
    thinks = rng.random() < 0.3
    told = thinks and rng.random() < 0.5
    if told:
        system = f"{system} {rng.choice(THINKERS)}".strip()
    text = f"{SYSTEM}\n{system}{END}\n" if system else ""
    for left in reversed(range(rng.choice([1, 1, 1, 2, 3]))):
        if rng.random() < 0.15:
            question, answer = rng.choice(GREETINGS)
            reason = f"The user says: {question} I answer in a friendly way."
        else:
            entry = rng.choice(entries)
            question, answer, reason = ask(entry, rng), entry.summary(), thought(entry, rng)
            if rng.random() < 0.25 and len(entry.doc) < 700:
                question, answer = f"{question} Tell me all you know.", entry.doc
            elif entry.signature and rng.random() < 0.15 and len(entry.signature) < 200:
                question = f"How do I call {entry.name}?"
                answer = f"Call it as {entry.name}{entry.signature}. {answer}"
        if thinks and left == 0:
            answer = f"{THINK}\n{reason}\n{THOUGHT}\n\n{answer}"
        elif rng.random() < 0.08:
            answer = f"{THINK}\n{THOUGHT}\n\n{answer}"
        text += turn(question, answer)
    return text


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything that is trained on, and what is held out to measure."""

    train: list[str]
    held_pages: list[str]
    held_chats: list[str]


def gather(*, num_chats: int, seed: int) -> Texts:
    """Pages and chats, shuffled; two per cent of each are held out."""
    rng = random.Random(seed)
    entries, comments = written_in_python()
    entries += written_in_c()
    seen: set[str] = set()
    unique = [e for e in entries if not (e.doc in seen or seen.add(e.doc))]  # type: ignore[func-returns-value]
    pages = [e.text() + END + "\n" for e in unique]
    pages += [f"{name}\n\n{text.strip()}\n{END}\n" for name, text in sorted(topics.items())]
    pages += [c + END + "\n" for c in comments]
    rng.shuffle(pages)
    askable = [e for e in unique if 15 < len(e.summary()) <= 330 and len(e.name) < 60]
    rng.shuffle(askable)
    num_held = len(askable) // 50
    chats = [conversation(askable[num_held:], rng) for _ in range(num_chats)]
    held = [conversation(askable[:num_held], rng) for _ in range(num_held)]
    num_held_pages = len(pages) // 50
    train = pages[num_held_pages:] + chats
    rng.shuffle(train)
    return Texts(train, pages[:num_held_pages], held)
