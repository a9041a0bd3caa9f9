"""Forms of the families that write arguments as JSON, or in Python syntax."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from server.text.calls.form import CallForm
from server.text.calls.tagged_forms import CODER


def _nine_characters() -> str:
    return uuid4().hex[:9]


_ARGS, _CALL_ID = "[ARGS]", "[CALL_ID]"

_MISTRAL_LIST = CallForm(start="[TOOL_CALLS]", before=" ", between=", ", is_list=True)
_DEEPSEEK_START, _DEEPSEEK_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_DEEPSEEK_CALL, _DEEPSEEK_SEP, _DEEPSEEK_CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
DEEPSEEK_TOKENS = (_DEEPSEEK_START, _DEEPSEEK_END, _DEEPSEEK_CALL, _DEEPSEEK_SEP, _DEEPSEEK_CALL_END)
_DEEPSEEK_BARE = CallForm(
    start=_DEEPSEEK_START,
    end=_DEEPSEEK_END,
    head=_DEEPSEEK_CALL,
    mid=_DEEPSEEK_SEP,
    tail=_DEEPSEEK_CALL_END,
    between="",
    style="json",
)
_DEEPSEEK_FENCED = CallForm(
    start=_DEEPSEEK_START,
    end=_DEEPSEEK_END,
    head=f"{_DEEPSEEK_CALL}function{_DEEPSEEK_SEP}",
    mid="\n```json\n",
    tail=f"\n```{_DEEPSEEK_CALL_END}",
    between="\n",
    style="json",
)
_LLAMA_TAGGED = CallForm(head="<function=", mid=">", tail="</function>", style="json", between="\n")
_PYTHONIC = CallForm(before="[", after="]", between=", ", mid="(", tail=")", style="python")

JSON_FORMS = (
    CallForm(
        name="json_tools",
        models="Qwen2.5, Qwen3, Hermes, ERNIE 4.5, EXAONE 4, SmolLM3, Ling, pocket",
        start="<tool_call>",
        end="</tool_call>",
        before="\n",
        after="\n",
        also=(CODER,),
        template=("<tool_call>",),
    ),
    CallForm(
        name="kimi_k2",
        models="Kimi K2",
        start="<|tool_calls_section_begin|>",
        end="<|tool_calls_section_end|>",
        head="<|tool_call_begin|>functions.",
        mid=":{index}<|tool_call_argument_begin|>",
        tail="<|tool_call_end|>",
        between="",
        style="json",
        id_is_name=True,
        template=("<|tool_calls_section_begin|>",),
    ),
    CallForm(
        name="mistral",
        models="Mistral, Devstral, Magistral",
        start="[TOOL_CALLS]",
        mid=_ARGS,
        style="json",
        inside=(_CALL_ID,),
        new_id=_nine_characters,
        also=(
            CallForm(mid=f"{_CALL_ID}{{id}}{_ARGS}", style="json"),
            CallForm(style="json"),
            _MISTRAL_LIST,
        ),
        template=("[TOOL_CALLS]", _ARGS),
    ),
    replace(
        _MISTRAL_LIST,
        name="mistral_list",
        models="Mistral before tokenizer version 11",
        new_id=_nine_characters,
        also=(CallForm(style="json"), CallForm(mid=_ARGS, style="json")),
        template=("[TOOL_CALLS]",),
    ),
    replace(
        _PYTHONIC,
        name="pythonic",
        models="LFM2",
        start="<|tool_call_start|>",
        end="<|tool_call_end|>",
        template=("<|tool_list_start|>",),
        vocabulary=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    replace(
        _DEEPSEEK_FENCED,
        name="deepseek",
        models="DeepSeek V3 and R1",
        also=(_DEEPSEEK_BARE,),
        template=(_DEEPSEEK_CALL, "```json"),
    ),
    replace(
        _DEEPSEEK_BARE,
        name="deepseek_v31",
        models="DeepSeek V3.1",
        also=(_DEEPSEEK_FENCED,),
        vocabulary=DEEPSEEK_TOKENS,
    ),
    replace(
        _PYTHONIC,
        name="llama_pythonic",
        models="Llama 3.2 and 4 with templates that ask for Python",
        also=(
            replace(_PYTHONIC, start="<|python_start|>", end="<|python_end|>"),
            replace(_PYTHONIC, start="<|python_tag|>"),
            CallForm(keys=("name", "parameters")),
        ),
        template=("[func_name1(",),
    ),
    CallForm(
        name="llama_json",
        models="Llama 3.1 to 4",
        keys=("name", "parameters"),
        between="; ",
        also=(
            CallForm(start="<|python_tag|>", keys=("name", "parameters")),
            CallForm(start="<|python_start|>", end="<|python_end|>", keys=("name", "parameters")),
            _LLAMA_TAGGED,
            _PYTHONIC,
            replace(_PYTHONIC, start="<|python_start|>", end="<|python_end|>"),
        ),
        template=('"parameters": ', "ipython"),
    ),
    replace(
        _LLAMA_TAGGED,
        name="llama_tagged",
        models="Functionary 3.1, Llama 3.1 with custom functions",
        also=(CallForm(keys=("name", "parameters")),),
        template=("<function=",),
    ),
    CallForm(
        name="phi4",
        models="Phi-4-mini",
        start="<|tool_call|>",
        end="<|/tool_call|>",
        between=", ",
        is_list=True,
        also=(CallForm(start="functools", is_list=True),),
        template=("<|tool|>", "<|/tool|>"),
    ),
    CallForm(
        name="command_a",
        models="Command A, Command R7B",
        start="<|START_ACTION|>",
        end="<|END_ACTION|>",
        before="\n",
        between=",\n",
        after="\n",
        keys=("tool_name", "parameters"),
        is_list=True,
        template=("<|START_ACTION|>",),
    ),
    CallForm(
        name="command_r",
        models="Command R, Command R+",
        start="Action: ```json\n",
        end="```",
        between=",\n",
        after="\n",
        keys=("tool_name", "parameters"),
        is_list=True,
        template=("Action:", "```json", "tool_name"),
    ),
    CallForm(
        name="granite",
        models="Granite 3",
        start="<|tool_call|>",
        between=", ",
        is_list=True,
        also=(CallForm(start="<tool_call>", end="</tool_call>", is_list=True),),
        template=("<|tool_call|>",),
    ),
    CallForm(
        name="tool_calls_list",
        models="Hunyuan, Jamba, MiniMax M1",
        start="<tool_calls>",
        end="</tool_calls>",
        before="\n",
        between=", ",
        after="\n",
        is_list=True,
        template=("<tool_calls>",),
    ),
    CallForm(
        name="nemotron",
        models="Nemotron Super and Nano",
        start="<TOOLCALL>",
        end="</TOOLCALL>",
        between=", ",
        is_list=True,
        template=("<TOOLCALL>",),
    ),
    CallForm(
        name="internlm",
        models="InternLM 2 and 3",
        start="<|action_start|><|plugin|>",
        end="<|action_end|>",
        before="\n",
        after="\n",
        keys=("name", "parameters"),
        template=("<|action_start|>",),
    ),
    CallForm(
        name="apertus",
        models="Apertus",
        start="<|tools_prefix|>",
        end="<|tools_suffix|>",
        between=", ",
        is_list=True,
        named_key=True,
        template=("<|tools_prefix|>",),
    ),
    replace(
        _PYTHONIC,
        name="olmo",
        models="OLMo 3",
        start="<function_calls>",
        end="</function_calls>",
        before="\n",
        between="\n",
        after="\n",
        template=("<function_calls>",),
    ),
)
