"""A share of the other skills in Chinese: identity, letters, sums, decimals, recall."""

# ruff: noqa: RUF001 - the marks are Chinese

from __future__ import annotations

from scripts.pocket.items import Item
from scripts.pocket.skills import arithmetic, decimals, letters
from scripts.pocket.skills.base import Draw, asked, system, user
from scripts.pocket.skills.judge import first_number_is, last_number_is, says, text_is

_PAIRS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("你是谁？", "你是什么？", "请介绍一下你自己。", "介绍一下自己。"),
        "我是 Pippin 的口袋模型，一个很小的语言模型。",
    ),
    (("你叫什么名字？", "你的名字是什么？", "你叫什么？"), "我叫 Pocket，是 Pippin 的口袋模型。"),
    (("Pippin 是什么？", "什么是 Pippin？", "介绍一下 Pippin。"), "Pippin 是一个基于 MLX 的大模型推理服务器。"),
    (("你会做什么？", "你能做什么？", "你可以帮我做什么？"), "我会数字母、比较小数、做简单的算术、记住事实。"),
    (("你好", "你好！", "您好！", "早上好！", "晚上好！", "嗨！"), "你好！有什么可以帮你？"),
    (("谢谢", "谢谢！", "谢谢你！", "多谢！", "非常感谢！"), "不客气。"),
    (("再见", "再见！", "拜拜！", "晚安！"), "再见！"),
    (("你会说中文吗？", "你会说英文吗？", "你会说什么语言？"), "我会说英文和一点中文。"),
    (
        (
            "中国的首都是哪里？",
            "今天有什么新闻？",
            "请写一篇文章。",
            "讲一个故事。",
            "法国的首都是哪里？",
            "写一首诗。",
            "今天天气怎么样？",
            "谁写了这本书？",
            "天空为什么是蓝色的？",
        ),
        "我是一个很小的模型，不知道这个。",
    ),
)
_BEFORE = ("", "", "", "请问，", "你好，", "我想知道，")
_COUNT = ("{word} 里有几个 {letter}？", "单词 {word} 里有几个 {letter}？", "{word} 中有多少个字母 {letter}？")
_SUM = ("{sum} 等于多少？", "{sum} 是多少？", "请计算 {sum}。", "{sum} = ？")
_LARGER = ("{a} 和 {b} 哪个大？", "{a} 和 {b} 哪个更大？", "哪个大，{a} 还是 {b}？")
_SURNAMES = "王李张刘陈杨赵黄周吴"
_GIVEN = "明丽华强芳伟英杰静涛敏军"
_COLOURS = ("红色", "蓝色", "绿色", "黄色", "白色", "黑色")
_CITIES = ("北京", "上海", "广州", "成都", "南京", "西安")


def talk(draw: Draw) -> Item:
    def drawn() -> tuple[str, str]:
        phrasings, answer = draw.one(_PAIRS)
        text = draw.one(phrasings)
        return (draw.one(_BEFORE) + text if text.endswith("？") else text), answer

    question, answer = draw.fresh(drawn, lambda pair: pair[0])
    return asked(draw, "chinese", question, answer, text_is(answer))


def count(draw: Draw) -> Item:
    word = draw.word()
    letter = letters.pick_letter(draw, word)
    number = word.count(letter)
    question = draw.one(_COUNT).format(word=word, letter=letter)
    answer = f"{word} 里有 {number} 个 {letter}。" if number else f"{word} 里没有 {letter}。"
    return asked(draw, "chinese", question, answer, last_number_is(number), letters.running_count(word, letter))


def calculate(draw: Draw) -> Item:
    a, sign, b = arithmetic.draw_sum(draw)
    result = arithmetic.value(a, sign, b)
    question = draw.one(_SUM).format(sum=f"{a} {sign} {b}")
    reasoning = arithmetic.steps(a, sign, b)
    return asked(draw, "chinese", question, f"{a} {sign} {b} = {result}。", last_number_is(result), reasoning)


def compare(draw: Draw) -> Item:
    a, b = decimals.draw_pair(draw)
    question = draw.one(_LARGER).format(a=a, b=b)
    left, right = decimals.padded(a, b)
    reasoning = decimals.comparison(a, b)
    if left == right:
        return asked(draw, "chinese", question, f"{a} 和 {b} 一样大。", lambda text: "一样" in text, reasoning)
    one, other = (a, b) if left > right else (b, a)
    return asked(draw, "chinese", question, f"{one} 比 {other} 大。", first_number_is(one), reasoning)


def _name(draw: Draw) -> str:
    if draw.chance(0.4):
        return draw.name()
    return draw.fresh(lambda: draw.one(_SURNAMES) + "".join(draw.rng.sample(_GIVEN, draw.rng.randint(1, 2))))


def recall(draw: Draw) -> Item:
    what = draw.one(("密码", "密码", "城市", "颜色"))
    names: dict[str, str] = {}
    for _ in range(draw.rng.randint(2, 12)):
        value = draw.code() if what == "密码" else draw.one(_CITIES if what == "城市" else _COLOURS)
        names.setdefault(_name(draw), value)
    notes = "\n".join(f"{name}的{what}是{value}。" for name, value in names.items())
    name = draw.one(list(names))
    question = f"{name}的{what}是什么？"
    messages = [system(notes), user(question)] if draw.chance(0.3) else [user(f"{notes}\n\n{question}")]
    value = names[name]
    right = says(value) if what == "密码" else lambda text: value in text
    return asked(draw, "chinese", messages, f"{name}的{what}是{value}。", right)


_KINDS = {"talk": talk, "count": count, "calculate": calculate, "compare": compare, "recall": recall}


def make(draw: Draw, kind: str | None = None) -> Item:
    """Return an item; `kind` is talk, count, calculate, compare or recall."""
    kind = kind or draw.one(("talk", "count", "count", "calculate", "calculate", "compare", "recall", "recall"))
    return _KINDS[kind](draw)
