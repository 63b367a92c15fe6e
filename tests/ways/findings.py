"""What a run says in sentences, in two languages; every number in them is the run's own.

    sentences(found, "en")

A sentence about ways that a run passed over is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]
_PLACE = re.compile(r"\{([\w.-]+)\}")

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
        "the data each, with learning rates that nobody searched for: their order says little. LoRA's answer has "
        "{lora.written} tokens and costs {lora.cpu}; the base's, of {base.written} tokens, {base.cpu}.",
        "pt": "LoRA acertou {lora.right}, rsLoRA {rslora.right}, DoRA {dora.right}, com {lora.passes} passagens "
        "pelos dados "
        "cada um e taxas de aprendizagem que ninguém procurou: a ordem entre eles diz pouco. A resposta do LoRA tem "
        "{lora.written} tokens e custa {lora.cpu}; a da base, de {base.written} tokens, {base.cpu}.",
    },
    {
        "en": "QLoRA, trained over nf4: {qlora.right} right where the base is served in full precision, "
        "{quantised.right} "
        "where it is served in nf4. The base in nf4 alone reads the right answers at a perplexity of "
        "{base-nf4.perplexity}, in full precision at {base.perplexity}. Training took {qlora.minutes} minutes, LoRA's "
        "{lora.minutes}: at different times, so that a small difference says nothing. An answer of the base costs "
        "{base-nf4.cpu} in nf4 and {base.cpu} in full precision.",
        "pt": "QLoRA, treinado sobre nf4: {qlora.right} certas com a base servida em precisão inteira, "
        "{quantised.right} com "
        "ela servida em nf4. A base sozinha lê as respostas certas com perplexidade {base-nf4.perplexity} em nf4 e "
        "{base.perplexity} em precisão inteira. O treino levou {qlora.minutes} minutos, o do LoRA {lora.minutes}: em "
        "momentos diferentes, de modo que uma diferença pequena não diz nada. Uma resposta da base custa "
        "{base-nf4.cpu} em nf4 e {base.cpu} em precisão inteira.",
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
        "en": "The full fine-tune: {full.bytes} for {full.right} right after {full.passes} passes; LoRA {lora.bytes}.",
        "pt": "O ajuste completo: {full.bytes} para {full.right} certas depois de {full.passes} passagens; LoRA "
        "{lora.bytes}.",
    },
    {
        "en": "Reinforcement learning: the toy reward on prompts that weren't trained on from {rl.reward-before} to "
        "{rl.reward-after} in {rl.iterations} iterations.",
        "pt": "Aprendizagem por reforço: a recompensa de brinquedo, em prompts fora do treino, de {rl.reward-before} a "
        "{rl.reward-after} em {rl.iterations} iterações.",
    },
)


def sentences(found: Json, language: str) -> str:
    """A list in Markdown."""
    values = numbers(found)
    if language == "pt":
        values = {name: value.replace(".", ",") for name, value in values.items()}
    lines = []
    for finding in FINDINGS:
        places = _PLACE.findall(finding[language])
        if values.keys() >= set(places):
            lines.append("- " + _PLACE.sub(lambda place: values[place[1]], finding[language]))
    return "\n".join(lines)


def numbers(found: Json) -> dict[str, str]:
    """All that sentences may name: `way.measure`, as it is shown."""
    return {f"{row['key']}.{name}": value for row in found["ways"] for name, value in _of(row).items()}


def _of(row: Json) -> dict[str, str]:
    told: dict[str, str] = {"bytes": size(row["bytes"]), "minutes": f"{row['minutes']:.1f}"}
    if "passes" in row:
        told["passes"] = f"{row['passes']:.2g}"
    if "right" in row:
        told |= {"right": percent(row["right"]), "exact": percent(row["exact"])}
        told |= {"perplexity": perplexity(row["answer_perplexity"]), "cpu": f"{row['cost']['cpu_ms']:.0f} ms"}
        told |= {"written": f"{row['cost']['output_tokens']:.1f}"}
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
    for unit in ("", "kB", "MB"):
        if count < 1000 or unit == "MB":
            return f"{count:.1f} {unit}" if unit else f"{count:.0f}" if count else "–"
        count /= 1000
    raise AssertionError
