"""Give a language model of transformers more layers, train these alone, and save it as an ordinary model of its class.

Each new layer is a copy of the one before it that adds nothing at first: block expansion, as LLaMA Pro does it (Wu et
al. 2024, arXiv 2401.02415) to teach a model something new while the old layers stay as they are. For a model of your
own, put ``AutoModelForCausalLM.from_pretrained(...)`` in place of ``small_model()``.

Run: python examples/language_model.py        (needs transformers; a few seconds)
"""

import tempfile

import torch
import transformers
from torch import Tensor, nn

import auxin


def small_model() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def sequences(step: int) -> Tensor:
    """Return 16 sequences in which each token is the one before plus a step, round and round."""
    start = torch.randint(0, 32, (16, 1))
    return (start + step * torch.arange(12)) % 32


def train(model: nn.Module, step: int, updates: int = 80) -> float:
    """Train what is not frozen, and return the last loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(updates):
        ids = sequences(step)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    model = small_model()
    print(f"{model.config.num_hidden_layers} layers, steps of 1: loss {train(model, step=1):.2f}")

    model.requires_grad_(False)
    example = {"input_ids": sequences(1)}
    graph = auxin.trace(model, example)
    for layer in range(model.config.num_hidden_layers):
        print(auxin.deepen(model, f"model.layers.{layer}", graph=graph))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".grown." in name)
    before = float(model(**(ids := {"input_ids": sequences(5)}), labels=ids["input_ids"]).loss.detach())
    after = train(model, step=5)
    print(f"{model.config.num_hidden_layers} layers, steps of 5, new layers trained: loss {before:.2f} to {after:.2f}")

    plain = auxin.unnest(model, example)  # layers 0, 1, 2, 3 in place of layers within layers
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        loaded = transformers.LlamaForCausalLM.from_pretrained(folder)
    prompt = sequences(5)[:1, :4]
    assert torch.equal(loaded.generate(prompt, max_new_tokens=6), model.generate(prompt, max_new_tokens=6))
    return before, after


if __name__ == "__main__":
    main()
