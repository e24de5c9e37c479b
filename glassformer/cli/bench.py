"""`glassformer bench`: prefill and decode speed against this machine's limits."""

from __future__ import annotations

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_model, out, print_json, progress


def bench(
    model: str,
    *,
    prompt_tokens: int = 0,
    new_tokens: int = 0,
    batch: int = 1,
    rounds: int = 5,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Measure the speed of prefill and decoding, and its share of this machine's limits.

    Parameters
    ----------
    model
        A model folder, a run folder, `stories` or `smollm2`.
    prompt_tokens
        Tokens of the prompt; 0 is three quarters of the context, at most 512.
    new_tokens
        Tokens to generate; 0 is a quarter of the context, at most 64.
    batch
        Sequences per forward pass.
    rounds
        Rounds; medians are reported.
    """
    from dataclasses import asdict

    from glassformer.generate.sampling import check_number
    from glassformer.generate.speed import measure_speed
    from glassformer.models.language_model import LanguageModel

    for name, value in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        check_number(name, value, 0, 1 << 31)
    for name, value in (("batch", batch), ("rounds", rounds)):
        check_number(name, value, 1, 1 << 31)
    lm = open_model(LanguageModel, model, machine, ignore_key, quiet=json)
    context = lm.config.context_length
    with progress(quiet=json) as tick:
        speed = measure_speed(
            lm.model,
            prompt_tokens=prompt_tokens or min(512, 3 * context // 4),
            new_tokens=new_tokens or min(64, context // 4),
            batch=batch,
            rounds=rounds,
            tick=tick,
        )
    if json:
        print_json(asdict(speed) | {"prefill_share": speed.prefill_share, "decode_share": speed.decode_share})
        return
    out.print(
        f"prefill  {speed.prefill_tokens_per_second:>10,.0f} tokens/s   "
        f"{speed.prefill_flops / 1e9:,.1f} GFLOP per prompt of {speed.prompt_tokens} tokens x {batch}, "
        f"{100 * speed.prefill_share:.0f}% of {speed.matrix_rate / 1e9:,.0f} GFLOP/s"
    )
    out.print(
        f"decode   {speed.decode_tokens_per_second:>10,.0f} tokens/s   "
        f"{speed.decode_bytes / 1e6:,.1f} MB read per step of {batch}, "
        f"{100 * speed.decode_share:.0f}% of {speed.memory_rate / 1e9:,.1f} GB/s"
    )
    out.print("shares of the rates measured just now with this model's matrices and one large tensor", style="dim")
