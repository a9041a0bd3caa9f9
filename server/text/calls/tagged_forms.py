"""Forms of the families that write arguments one by one, or with custom quotes."""

from __future__ import annotations

from dataclasses import replace

from server.text.calls.form import CallForm, Pair

DSML = "｜DSML｜"
"""Part of the tags of DeepSeek V3.2."""

_QWEN_PAIR = Pair(head="<parameter={key}>", tail="</parameter>", frame="\n", between="\n")
_GLM_PAIR = Pair(head="<arg_key>{key}</arg_key>{nl}<arg_value>", tail="</arg_value>", between="{nl}")

CODER = CallForm(head="<function=", mid=">\n", tail="</function>", style="pairs", pair=_QWEN_PAIR)
"""Qwen3-Coder's call without its tags."""
_OBJECT = CallForm()
_GLM = CallForm(
    start="<tool_call>",
    end="</tool_call>",
    mid="{nl}",
    style="pairs",
    pair=_GLM_PAIR,
    also=(_OBJECT,),
)

TAGGED_FORMS = (
    replace(
        CODER,
        name="qwen3_coder",
        models="Qwen3-Coder, Qwen3-Next, Qwen3.5, Nemotron 3",
        start="<tool_call>",
        end="</tool_call>",
        before="\n",
        after="\n",
        also=(_OBJECT,),
        template=("<tool_call>", "<function="),
    ),
    replace(
        CODER,
        name="seed_oss",
        models="Seed-OSS",
        start="<seed:tool_call>",
        end="</seed:tool_call>",
        before="\n",
        after="\n",
        pair=Pair(head="<parameter={key}>", tail="</parameter>", between="\n"),
        template=("<seed:tool_call>",),
    ),
    replace(_GLM, name="glm47", models="GLM-4.5 and later", template=("<arg_key>",)),
    replace(_GLM, name="laguna", models="Laguna"),
    CallForm(
        name="longcat",
        models="LongCat-Flash",
        start="<longcat_tool_call>",
        end="</longcat_tool_call>",
        mid="{nl}",
        style="pairs",
        pair=Pair(
            head="<longcat_arg_key>{key}</longcat_arg_key>{nl}<longcat_arg_value>",
            tail="</longcat_arg_value>",
            between="{nl}",
        ),
        also=(_OBJECT,),
        template=("<longcat_tool_call>",),
    ),
    CallForm(
        name="kimi_k3",
        models="Kimi K3",
        start="<|open|>tools<|sep|>",
        end="<|close|>tools<|sep|>",
        head='<|open|>call tool="',
        mid='" index="{index}"<|sep|>',
        tail="<|close|>call<|sep|>",
        between="",
        style="pairs",
        pair=Pair(
            head='<|open|>argument key="{key}" type="{flag}"<|sep|>',
            tail="<|close|>argument<|sep|>",
            text_flag="string",
            other_flags=("integer", "number", "boolean", "object", "array", "null"),
        ),
        also=(
            CallForm(
                head='<|open|>call tool="',
                mid='" index="{index}"<|sep|><|open|>json type="object"<|sep|>',
                tail="<|close|>json<|sep|><|close|>call<|sep|>",
                style="json",
            ),
        ),
        vocabulary=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
    ),
    CallForm(
        name="minimax_m2",
        models="MiniMax M2",
        start="<minimax:tool_call>",
        end="</minimax:tool_call>",
        before="\n",
        head='<invoke name="',
        mid='">\n',
        tail="</invoke>",
        between="\n",
        after="\n",
        style="pairs",
        pair=Pair(head='<parameter name="{key}">', tail="</parameter>", between="\n"),
        template=("<minimax:tool_call>",),
    ),
    CallForm(
        name="muse_spark",
        models="Muse Spark",
        start="<atem:function_calls>",
        end="</atem:function_calls>",
        before="\n",
        head='<atem:invoke name="',
        mid='">\n',
        tail="</atem:invoke>",
        between="\n",
        after="\n",
        style="pairs",
        pair=Pair(head='<atem:parameter name="{key}">', tail="</atem:parameter>", between="\n"),
        template=("<atem:function_calls>",),
    ),
    CallForm(
        name="minicpm5",
        models="MiniCPM5",
        head='<function name="',
        mid='">',
        tail="</function>",
        between="\n",
        style="pairs",
        pair=Pair(head='<param name="{key}">', tail="</param>", cdata=True),
        template=('<function name="', '<param name="'),
    ),
    CallForm(
        name="gemma4",
        models="Gemma 4",
        start="<|tool_call>",
        end="<tool_call|>",
        head="call:",
        style="bare",
        quote='<|"|>',
        template=("<|tool_call>", "<tool_call|>"),
    ),
    CallForm(
        name="function_gemma",
        models="FunctionGemma",
        start="<start_function_call>",
        end="<end_function_call>",
        head="call:",
        style="bare",
        quote="<escape>",
        template=("<start_function_call>",),
    ),
    CallForm(
        name="deepseek_v32",
        models="DeepSeek V3.2",
        start=f"<{DSML}function_calls>",
        end=f"</{DSML}function_calls>",
        before="\n",
        head=f'<{DSML}invoke name="',
        mid='">\n',
        tail=f"</{DSML}invoke>",
        between="\n",
        after="\n",
        style="pairs",
        pair=Pair(
            head=f'<{DSML}parameter name="{{key}}" string="{{flag}}">',
            tail=f"</{DSML}parameter>",
            between="\n",
            text_flag="true",
            other_flags=("false",),
        ),
        inside=(DSML,),
        template=(DSML,),
    ),
)
