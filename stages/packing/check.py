"""The attention that a model trains with, compared before the first step with the model's own attention.

An attention may lack something that a model needs, or let packed documents attend to each other. So documents in one
packed row are compared, by scores and by gradients, with the same documents one by one in eager attention.

L tokens of a row, H width of the model, V vocabulary.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from stages.evaluating import evaluating
from stages.packing.attention import AttentionError, bounds, takes_bounds

OWN = "eager"  # every model's own code
EXACT, ROUNDED = 1e-3, 0.1  # relative difference allowed in full and in half precision
SHIFTS = 4  # in half precision: passes whose input embeddings differ by rounding
STEADY = 0.3  # a token that rounding moves by more, relative to its size, says nothing of an attention
BEYOND = 3.0  # times what rounding was seen to move
LENGTHS = (9, 24, 14)  # tokens of the compared documents; the middle one may grow, to be longer than a window
LONGEST_WINDOW = 256  # a longer sliding window is not compared: it would take long
# In messages of plain RuntimeErrors that are about the machine.
MACHINE = re.compile(
    r"out of memory|allocate memory|enough memory|alloc_failed|cuda error|cuda driver|nccl|not_initialized", re.I
)
FIRST_ID = 3  # ids below are often special


def set_attention(model: Any, name: str) -> bool:
    """Whether a model has, or can be given, an attention; it has it then."""
    if model.config._attn_implementation == name:
        return True
    if not model._can_set_attn_implementation():
        return False  # its layers are of other classes for each attention
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError, KeyError):
        model.set_attn_implementation(before)
        return False
    return model.config._attn_implementation == name


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Check that packed documents do not attend to each other: a change of the first must not change the second.

    Raises: AttentionError if it does; then this architecture, or its attention, does not use position_ids.
    """
    device = model.device
    half = 8
    positions = torch.arange(half, device=device).repeat(2)[None]
    packed = bounds(positions) if takes_bounds(model) else {}
    scores = []
    with evaluating(model):
        for first in (1, 2):
            ids = torch.cat([torch.full((half,), first), torch.arange(FIRST_ID, FIRST_ID + half)])[None].to(device)
            output = model(input_ids=ids, position_ids=positions, use_cache=False, **packed)
            scores.append(output.logits[0, half:].float())
    leak = (scores[0] - scores[1]).abs().max().item()
    if leak > 1e-3 * scores[0].abs().max().item():
        chosen = model.config._attn_implementation
        others = " or ".join(name for name in ("auto", "sdpa", OWN) if name != chosen)
        raise AttentionError(
            f"{type(model).__name__} with {chosen} attention lets packed documents attend to each other (logits move "
            f"by {leak:.2g}); choose another attention, {others}, or another model"
        )


def check_attention(model: PreTrainedModel, half: bool = False) -> None:
    """Check that packed documents have the scores and gradients that they have one by one in the model's own attention.

    A model that has one attention only, chosen when it was made, is compared with itself. Under ZeRO-3 and FSDP scores
    alone are compared: there a backward pass belongs to a step of the engine, which gathers and frees the weights. An
    attention whose gradients alone are wrong is found where the same stage starts in one process.

    In half precision, what a deep model gives for a few tokens is rounding alone, most of all the gradients of those
    that all others attend to: in SmolLM2-135M they move by more than their size when the input is rounded otherwise.
    Such tokens are found by doing so in the model's own attention, and are not compared.

    Args:
        half: training computes in half precision.

    Raises: AttentionError if they differ by more than rounding.
    """
    chosen = model.config._attn_implementation
    documents = _documents(model)
    half = half or model.dtype in (torch.float16, torch.bfloat16)
    with evaluating(model):
        try:
            packed = _responses(model, [torch.cat(documents)], [len(one) for one in documents])
            own = OWN if set_attention(model, OWN) else chosen
            alone = _responses(model, documents, None)
            rounded = [_responses(model, documents, None, seed) for seed in range(SHIFTS if half else 0)]
        finally:
            set_attention(model, chosen)
    for what, one, two, *others in zip(("scores", "gradients"), packed, alone, *rounded, strict=True):
        if two is None or one is None:
            continue
        off, allowed = differences(one, two, [other for other in others if other is not None])
        if not off <= allowed:
            raise AttentionError(
                f"{type(model).__name__} with {chosen} attention does not compute what the model needs: the {what} of "
                f"packed documents are {off:.2g} from those in its {own} attention, relative to their size, and "
                f"rounding explains {allowed:.2g}. Use attention: auto, or eager"
            )


def differences(one: Tensor, two: Tensor, rounded: list[Tensor]) -> tuple[float, float]:
    """The relative difference of two attentions' rows (tokens, width), and the largest that rounding explains.

    Args:
        two: of the model's own attention. rounded: the same with inputs rounded otherwise; none in full precision.
    """

    def relative(changed: Tensor, among: Tensor | slice) -> float:
        return ((changed - two)[among].norm() / two[among].norm().clamp_min(1e-12)).item()

    if not rounded:
        return relative(one, slice(None)), EXACT
    size = two.norm(dim=1).clamp_min(1e-12)
    moved = torch.stack([(other - two).norm(dim=1) / size for other in rounded]).amax(0)
    steady = ~(moved > STEADY)  # a nan is compared, and is different
    among = steady if steady.any() else slice(None)
    return relative(one, among), max(ROUNDED, BEYOND * max(relative(other, among) for other in rounded))


def _documents(model: Any) -> list[Tensor]:
    """Token ids (L,) of the documents to compare."""
    shape = model.config.get_text_config()
    lengths = list(LENGTHS)
    windows = (getattr(shape, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size"))
    lengths[1] += max((window for window in windows if isinstance(window, int) and window <= LONGEST_WINDOW), default=0)
    most = getattr(shape, "max_position_embeddings", None) or max(lengths)
    generator = torch.Generator().manual_seed(0)
    last = max(FIRST_ID + 1, shape.vocab_size)
    drawn = [torch.randint(FIRST_ID, last, (min(length, most),), generator=generator) for length in lengths]
    return [ids.to(model.device) for ids in drawn]


def _responses(
    model: Any, rows: list[Tensor], packed: list[int] | None, rounding: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Scores of some rows (tokens, V), and the gradients of a function of them by the input embeddings (tokens, H).

    Under ZeRO-3 and FSDP, gradients belong to a pass of their engine: there they are None.

    Args:
        packed: lengths of the documents of a row; None if each row is one.
        rounding: seed of a change of the input embeddings by as much as bfloat16 rounds; None leaves them.
    """
    generator = None if rounding is None else torch.Generator().manual_seed(rounding)
    sharded = is_deepspeed_zero3_enabled() or any(hasattr(weight, "full_tensor") for weight in model.parameters())
    embedded: list[Tensor] = []

    def as_leaf(module: Any, inputs: Any, output: Tensor) -> Tensor:
        leaf = output.detach()
        if generator is not None:
            drawn = torch.randn(leaf.shape, generator=generator).to(leaf.device)
            leaf = (leaf.float() * (1 + torch.finfo(torch.bfloat16).eps * drawn)).to(leaf.dtype)
        embedded.append(leaf.requires_grad_())
        return embedded[-1]

    scores, gradients = [], []
    hook = None if sharded else model.get_input_embeddings().register_forward_hook(as_leaf)
    try:
        for ids in rows:
            given = _packed(model, packed, ids.device) if packed else {}  # a document alone needs no positions
            with torch.set_grad_enabled(not sharded):
                row = model(input_ids=ids[None], use_cache=False, **given).logits[0].float()
                scores.append(row.detach())
                if not sharded:
                    # of the right size for half precision, and different for each score
                    weighted = (row * torch.linspace(-1, 1, row.shape[1], device=row.device)).sum() / row.shape[1]
                    gradients.append(torch.autograd.grad(weighted, embedded[-1])[0][0].float())
    finally:
        if hook:
            hook.remove()
    return torch.cat(scores), torch.cat(gradients) if gradients else None


def _packed(model: Any, lengths: list[int], device: torch.device) -> dict[str, Any]:
    """Positions of packed documents, and their bounds for an attention that takes them."""
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    return {"position_ids": positions, **(bounds(positions) if takes_bounds(model) else {})}


def mask_documents(model: Any) -> Any:
    """Give a model a mask of its packed documents in each pass, for architectures that do not make one themselves.

    Returns: the hook's handle.
    """

    shape = model.config.get_text_config()
    kinds = set(getattr(shape, "layer_types", None) or ())
    window = getattr(shape, "sliding_window", None)

    def add_mask(module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = given.get("position_ids")
        if positions is None or given.get("attention_mask") is not None or given.get("past_key_values") is not None:
            return args, given
        document = (positions == 0).cumsum(1)
        place = torch.arange(positions.shape[1], device=positions.device)
        distance = place[:, None] - place
        within = (document[:, :, None] == document[:, None]) & (distance >= 0)
        mask: Any = _additive(within, module.dtype)
        if "sliding_attention" in kinds and window:  # such models take a mask for each kind of layer
            near = _additive(within & (distance < window), module.dtype)
            mask = {"full_attention": mask, "sliding_attention": near}
        return args, {**given, "attention_mask": mask}

    return model.register_forward_pre_hook(add_mask, with_kwargs=True)


def _additive(within: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (B, 1, L, L) to add to scores, from which tokens (B, L, L) are attended to."""
    mask = torch.zeros(within.shape, dtype=dtype, device=within.device)
    return mask.masked_fill(~within, torch.finfo(dtype).min)[:, None]


class PackingCheck(TrainerCallback):
    """Checks the attention before the first step.

    With attention: auto, a model that does not train right with the preferred one gets sdpa, eager, or a mask of its
    documents, whichever is the first to be right.
    """

    def __init__(self, attention: str, language_model: Any = None) -> None:
        """
        Args:
            attention: as the config names it.
            language_model: the causal LLM in the trained model, if that is not the model itself.
        """
        self.attention, self.language_model = attention, language_model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs
    ) -> None:
        checked = model if self.language_model is None else self.language_model
        half = bool(args and (args.bf16 or args.fp16))
        if self.attention != "auto":
            check_packing(checked)
            check_attention(checked, half)
        else:
            choose_attention(checked, half, quiet=bool(args and args.process_index))


def _does_not_fit(error: Exception) -> bool:
    """Whether an error means that a model cannot be computed with an attention: other shapes, other arguments.

    Too little memory, and errors of a device or of the network between processes, are no such errors. Most of them are
    subclasses of RuntimeError; some have its class, and only a message.
    """
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return type(error) is RuntimeError and not MACHINE.search(str(error))
    return True


def choose_attention(model: Any, half: bool, quiet: bool = False) -> None:
    """Give a model the first attention that is right for it: the one that it has, sdpa, eager, or its own with a mask.

    Raises: AttentionError, or the error of the first that was tried, if none is. What says nothing of the attention,
        such as too little memory, is raised at once.
    """
    first = model.config._attn_implementation
    failures: list[Exception] = []
    for name, masked in ((first, False), ("sdpa", False), (OWN, False), (OWN, True), ("sdpa", True), (first, True)):
        if not set_attention(model, name) or (not masked and failures and name == first):
            continue
        mask = mask_documents(model) if masked else None
        try:
            check_packing(model)
            check_attention(model, half)
        except (AttentionError, TypeError, KeyError, IndexError, RuntimeError) as error:
            if mask:
                mask.remove()
            if not _does_not_fit(error):
                raise
            failures.append(error)
            continue
        if failures and not quiet:
            how = " with a mask of the documents" if masked else ""
            print(f"attention: auto is {name}{how}: {failures[0]}", flush=True)
        return
    set_attention(model, first)
    raise failures[0]
