"""What a run says in sentences, in two languages; every number in them is the run's own.

    sentences(found, "en")

{way.measure} is a number of the run's, {way.measure/other} how it compares with the same of another way: in words that
the numbers choose. A sentence about ways that a run passed over is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]
_PLACE = re.compile(r"\{([\w./-]+)\}")
ALIKE = 0.1  # of one run each a smaller difference says nothing
COMPARED: Mapping[str, tuple[str, str, str, str]] = {  # alike, more, less, twice or more
    "en": ("about the same", "{percent} more", "{percent} less", "{times} times as much"),
    "pt": ("quase o mesmo", "{percent} a mais", "{percent} a menos", "{times} vezes esse valor"),
}

FINDINGS: tuple[Mapping[str, str], ...] = (
    {
        "en": "Examples in the prompt: {few-shot.right} right, and the right answer's perplexity {few-shot.perplexity} "
        "where the base alone has {base.perplexity}: that is the form. Passages: {rag.right} right, {rag.exact} word "
        "for "
        "word. Both: {rag-few-shot.right} and {rag-few-shot.exact}.",
        "pt": "Exemplos no prompt: {few-shot.right} certas, e a perplexidade da resposta certa é "
        "{few-shot.perplexity}, "
        "contra {base.perplexity} da base sozinha: isso é a forma. Trechos: {rag.right} certas, {rag.exact} palavra "
        "por "
        "palavra. Os dois juntos: {rag-few-shot.right} e {rag-few-shot.exact}.",
    },
    {
        "en": "LoRA was right on {lora.right}, rsLoRA on {rslora.right}, DoRA on {dora.right} after {lora.passes} "
        "passes over "
        "the data each, with learning rates that nobody tuned: their order says little. LoRA's answer has "
        "{lora.written} tokens and costs {lora.cpu}; the base's, of {base.written} tokens, {base.cpu}.",
        "pt": "LoRA acertou {lora.right}, rsLoRA {rslora.right}, DoRA {dora.right}, com {lora.passes} passagens "
        "pelos dados "
        "cada um e taxas de aprendizado que ninguém ajustou: a ordem entre eles diz pouco. A resposta do LoRA tem "
        "{lora.written} tokens e custa {lora.cpu}; a da base, de {base.written} tokens, {base.cpu}.",
    },
    {
        "en": "Training took {lora.minutes} minutes and at most {lora.peak} of memory for LoRA; for DoRA "
        "{dora.minutes} minutes ({dora.minutes/lora}) and {dora.peak} ({dora.peak/lora}); for QLoRA "
        "{qlora.minutes} minutes ({qlora.minutes/lora}) and {qlora.peak} ({qlora.peak/lora}); for the full "
        "fine-tune {full-model.minutes} minutes, of {full-model.passes} passes, and {full-model.peak} "
        "({full-model.peak/lora}). That is all that the process held, libraries included, in one run each.",
        "pt": "O treino levou {lora.minutes} minutos e no máximo {lora.peak} de memória com LoRA; com DoRA, "
        "{dora.minutes} minutos ({dora.minutes/lora}) e {dora.peak} ({dora.peak/lora}); com QLoRA, "
        "{qlora.minutes} minutos ({qlora.minutes/lora}) e {qlora.peak} ({qlora.peak/lora}); no ajuste "
        "completo, {full-model.minutes} minutos, de {full-model.passes} passagens, e {full-model.peak} "
        "({full-model.peak/lora}). É tudo o que o processo ocupou, bibliotecas incluídas, em uma execução de "
        "cada.",
    },
    {
        "en": "QLoRA, trained over nf4: {qlora.right} right where the base is served as it is, {quantised.right} "
        "where it is served in nf4.",
        "pt": "QLoRA, treinado sobre nf4: {qlora.right} certas com a base servida como ela é, {quantised.right} com "
        "ela servida em nf4.",
    },
    {
        "en": "The base as it is: its file has four bits a weight already, and the server holds these very numbers "
        "(`{base.held}`): {base.memory}, and {base.cpu} an answer. The same numbers in fp32: "
        "{base-fp32.memory} ({base-fp32.memory/base}) and {base-fp32.cpu} ({base-fp32.cpu/base}).",
        "pt": "A base como ela é: o seu arquivo já tem quatro bits por peso, e o servidor guarda exatamente esses "
        "números (`{base.held}`): {base.memory}, e {base.cpu} por resposta. Os mesmos números em fp32: "
        "{base-fp32.memory} ({base-fp32.memory/base}) e {base-fp32.cpu} ({base-fp32.cpu/base}).",
    },
    {
        "en": "The base in nf4, which rounds its numbers a second time: {base-nf4.memory} ({base-nf4.memory/base}) "
        "and {base-nf4.cpu} ({base-nf4.cpu/base}); the right answers have a perplexity of "
        "{base-nf4.perplexity} where the base as it is has {base.perplexity}, new lines {base-nf4.lines} and "
        "{base.lines}.",
        "pt": "A base em nf4, que arredonda os seus números pela segunda vez: {base-nf4.memory} "
        "({base-nf4.memory/base}) e {base-nf4.cpu} ({base-nf4.cpu/base}); a perplexidade das respostas certas "
        "é {base-nf4.perplexity}, contra {base.perplexity} da base como ela é, e a das linhas novas "
        "{base-nf4.lines}, contra {base.lines}.",
    },
    {
        "en": "Fewer bits for a model that nobody rounded before, the full fine-tune: {full-model.memory} as it is, "
        "{full-model.right} right and {full-model.cpu} an answer; with `--weights int8` {full-int8.memory} "
        "({full-int8.memory/full-model}), {full-int8.right} and {full-int8.cpu} ({full-int8.cpu/full-model}), "
        "the right answers at a perplexity of {full-int8.perplexity} where it had {full-model.perplexity} "
        "(`{full-int8.held}`); with `--weights int4` {full-int4.memory} ({full-int4.memory/full-model}), "
        "{full-int4.right} and {full-int4.perplexity} (`{full-int4.held}`). Extracted as an adapter, which "
        "isn't rounded, on the base as it is: {full.memory} and the adapter's {full.bytes}, {full.right} and "
        "{full.perplexity}.",
        "pt": "Menos bits num modelo que ninguém arredondou antes, o ajuste completo: como ele é, "
        "{full-model.memory}, {full-model.right} certas e {full-model.cpu} por resposta; com `--weights "
        "int8`, {full-int8.memory} ({full-int8.memory/full-model}), {full-int8.right} e {full-int8.cpu} "
        "({full-int8.cpu/full-model}), com perplexidade {full-int8.perplexity} nas respostas certas, contra "
        "{full-model.perplexity} antes (`{full-int8.held}`); com `--weights int4`, {full-int4.memory} "
        "({full-int4.memory/full-model}), {full-int4.right} e {full-int4.perplexity} (`{full-int4.held}`). "
        "Extraído como adaptador, que não é arredondado, sobre a base como ela é: {full.memory} mais os "
        "{full.bytes} do adaptador, {full.right} e {full.perplexity}.",
    },
    {
        "en": "RAFT: {raft.right} right, the base in the very same prompt {raft-base.right}. With captains, hours "
        "and fares "
        "exchanged among the passages, {raft.follows} of RAFT's answers tell what the passages say now and "
        "{raft.remembers} what they said in training; of the base's {raft-base.follows} and {raft-base.remembers}.",
        "pt": "RAFT: {raft.right} certas, a base com o mesmo prompt {raft-base.right}. Com capitães, horas e preços "
        "trocados "
        "entre os trechos, {raft.follows} das respostas do RAFT dizem o que os trechos dizem agora, e "
        "{raft.remembers} o que "
        "diziam no treino; da base, {raft-base.follows} e {raft-base.remembers}.",
    },
    {
        "en": "Continued pre-training: perplexity of new lines about the company {pretrained.lines}, of the base "
        "{base.lines}; {pretrained.right} of the questions right after {pretrained.passes} passes.",
        "pt": "Pré-treino continuado: perplexidade de linhas novas sobre a empresa {pretrained.lines}, da base "
        "{base.lines}; {pretrained.right} das perguntas certas depois de {pretrained.passes} passagens.",
    },
    {
        "en": "DPO, going on with the LoRA, which is its reference: of {dpo.pairs} pairs held out the right answer was "
        "likelier in {dpo.preferred-before} before and {dpo.preferred-after} after, the mean margin went from "
        "{dpo.margin-before} to {dpo.margin-after}, the loss (less is better) from {dpo.loss-before} to "
        "{dpo.loss-after}. {dpo.right} of the questions were answered right, {lora.right} by the LoRA alone.",
        "pt": "DPO, continuando o LoRA, que é a sua referência: de {dpo.pairs} pares guardados, a resposta certa era a "
        "mais provável em {dpo.preferred-before} antes e em {dpo.preferred-after} depois, a margem média foi de "
        "{dpo.margin-before} a {dpo.margin-after}, a perda (menos é melhor) de {dpo.loss-before} a {dpo.loss-after}. "
        "{dpo.right} das perguntas foram respondidas certo, {lora.right} só com o LoRA.",
    },
    {
        "en": "The full fine-tune, of {full-model.bytes} and after {full-model.passes} passes: {full-model.right} "
        "right served in the base's place. Extracted, {full.bytes}: {full.right} right. {full.left-out} of "
        "what training changed (‖ΔW‖) is left out; with the new lines read as one text the adapter's "
        "predictions are {full.kl} nats a token away from the full model's (KL), the base's {full.kl-base}; "
        "perplexity is {full.perplexity-base} of the base, {full.perplexity-tuned} of the full model and "
        "{full.perplexity-adapter} of the adapter. LoRA: {lora.bytes} for {lora.right}.",
        "pt": "O ajuste completo, de {full-model.bytes} e com {full-model.passes} passagens: {full-model.right} "
        "certas servido no lugar da base. Extraído, {full.bytes}: {full.right} certas. Fica de fora "
        "{full.left-out} do que o treino mudou (‖ΔW‖); com as linhas novas lidas como um só texto, as "
        "previsões do adaptador estão a {full.kl} nats por token das do modelo completo (KL), as da base a "
        "{full.kl-base}; a perplexidade é {full.perplexity-base} da base, {full.perplexity-tuned} do modelo "
        "completo e {full.perplexity-adapter} do adaptador. LoRA: {lora.bytes} para {lora.right}.",
    },
    {
        "en": "Reinforcement learning: the toy reward on prompts that weren't trained on from {rl.reward-before} to "
        "{rl.reward-after} in {rl.iterations} iterations.",
        "pt": "Aprendizado por reforço: a recompensa de exemplo, em prompts fora do treino, de {rl.reward-before} a "
        "{rl.reward-after} em {rl.iterations} iterações.",
    },
)


def sentences(found: Json, language: str) -> str:
    """A list in Markdown."""
    lines = []
    for finding in FINDINGS:
        values = {place: value_of(found, place, language) for place in _PLACE.findall(finding[language])}
        if None not in values.values():
            lines.append("- " + _PLACE.sub(lambda place: str(values[place[1]]), finding[language]))  # noqa: B023
    return "\n".join(lines)


def value_of(found: Json, place: str, language: str) -> str | None:
    """What stands for `way.measure`, or `way.measure/other`; None: the run has no such number."""
    rows = {row["key"]: row for row in found["ways"]}
    way, _, measure = place.partition(".")
    measure, _, other = measure.partition("/")
    if other:
        one, beside = (_compared_by(rows.get(key, {})).get(measure) for key in (way, other))
        value = compared(one / beside, language) if one and beside else None
    else:
        value = _of(rows[way]).get(measure) if way in rows else None
    decimal = language == "pt" and measure != "held"  # which is in the server's own words
    return value.replace(".", ",") if value and decimal else value


def compared(ratio: float, language: str) -> str:
    """The words for so many times as much."""
    alike, more, less, times = COMPARED[language]
    if ratio >= 2:
        return times.format(times=f"{ratio:.1f}")
    words = alike if abs(ratio - 1) < ALIKE else more if ratio > 1 else less
    return words.format(percent=percent(abs(ratio - 1)))


def _compared_by(row: Json) -> dict[str, float]:
    cost, held = row.get("cost", {}), row.get("held", {})
    found = {"minutes": row.get("minutes"), "peak": row.get("peak_bytes"), "cpu": cost.get("cpu_ms")}
    return {name: value for name, value in {**found, "memory": held.get("bytes")}.items() if value}


def _of(row: Json) -> dict[str, str]:
    told: dict[str, str] = {"bytes": size(row["bytes"]), "minutes": f"{row['minutes']:.1f}"}
    if "passes" in row:
        told["passes"] = f"{row['passes']:.2g}"
    if "right" in row:
        told |= {"right": percent(row["right"]), "exact": percent(row["exact"])}
        told |= {"perplexity": perplexity(row["answer_perplexity"]), "cpu": f"{row['cost']['cpu_ms']:.0f} ms"}
        told |= {"written": f"{row['cost']['output_tokens']:.1f}"}
    if peak := row.get("peak_bytes"):
        told["peak"] = size(peak)
    if held := row.get("held"):
        told |= {"memory": size(held["bytes"]), "held": held["as"] or held["dtype"]}
    if extraction := row.get("extraction"):
        told |= {"left-out": percent(extraction["left_out"]), "kl": f"{extraction['kl']['adapter']:.2g}"}
        told["kl-base"] = f"{extraction['kl']['base']:.2g}"
        told |= {f"perplexity-{name}": perplexity(value) for name, value in extraction["perplexity"].items()}
    if row.get("line_perplexity"):
        told["lines"] = perplexity(row["line_perplexity"])
    if changed := row.get("changed"):
        told |= {name: percent(changed[name]) for name in ("follows", "remembers")}
    if preference := row.get("preference"):
        told["pairs"] = str(preference["pairs"])
        for when in ("before", "after"):
            told[f"preferred-{when}"] = percent(preference[when]["preferred"])
            told[f"margin-{when}"] = f"{preference[when]['margin']:.2f}"
            told[f"loss-{when}"] = f"{preference[when]['loss']:.3f}"
    if "reward" in row:
        told |= {
            f"reward-{when}": f"{value:.2f}" for when, value in zip(("before", "after"), row["reward"], strict=True)
        }
        told["iterations"] = str(row["iterations"])
    return told


def percent(share: float) -> str:
    return f"{share:.0%}"


def perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def size(count: float) -> str:
    for unit in ("", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.1f} {unit}" if unit else f"{count:.0f}" if count else "–"
        count /= 1000
    raise AssertionError
