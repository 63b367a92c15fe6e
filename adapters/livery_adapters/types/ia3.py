"""(IA)³: one trained vector per module, on its input where it is a feed-forward module, else on its output."""

from __future__ import annotations

from dataclasses import dataclass

from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, Endings, FieldRules, module_names
from livery_adapters.types.base import PeftType, Roles, need, wrong_shape

RULES = FieldRules(read=frozenset({"feedforward_modules"}), harmless=frozenset({"init_ia3_weights"}))


@dataclass(frozen=True, slots=True)
class Ia3Settings:
    """`feedforward` is None where it is a pattern, which is never run: the vector's shape says the same."""

    feedforward: Endings | None

    def on_input(self, module: str) -> bool | None:
        """Whether the module's input is scaled; None where only the vector knows.

        As in PEFT, any ending of the path will do, even one that doesn't begin at a dot.
        """
        return None if self.feedforward is None else self.feedforward.fit(module)


def parse(config: Config) -> Ia3Settings:
    """Validate the fields of an IA3 configuration. Raises AdapterRefused."""
    names = config.get("feedforward_modules")
    if names is None or isinstance(names, str):
        return Ia3Settings(None)
    return Ia3Settings(Endings.of(module_names(names, "feedforward_modules")))


def target(module: str, roles: Roles, settings: Ia3Settings) -> TargetTensors:
    """Check the vector of one module: [1, in] for a feed-forward module, else [out, 1]. Raises AdapterRefused."""
    (vector,) = need(module, roles, "ia3_l")
    if len(vector.shape) != 2 or 1 not in vector.shape or 0 in vector.shape:
        raise wrong_shape(module, roles, "[1, in] or [out, 1]")
    on_input = vector.shape[0] == 1
    if settings.on_input(module) not in (None, on_input):
        needed = "[out, 1], as feedforward_modules doesn't name it," if on_input else "[1, in], as feedforward_modules"
        raise wrong_shape(module, roles, needed)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        in_features=vector.shape[1] if on_input else None,
        out_features=None if on_input else vector.shape[0],
    )


IA3 = PeftType(name="IA3", rules=RULES, suffixes={"ia3_l": "ia3_l"}, prefixes=("ia3_",), parse=parse, target=target)
