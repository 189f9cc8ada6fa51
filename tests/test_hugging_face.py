"""Language models as transformers builds them: cache on, outputs of its own types, nothing wrapped."""

from pathlib import Path
from typing import Any

import pytest
import torch

import auxin
from auxin.methods import Net2Net

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "hidden_size": 60, "num_hidden_layers": 1, "num_attention_heads": 6, "intermediate_size": 23}
GROUPED = {**SMALL, "num_key_value_heads": 3}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQUENCES = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 23, "decoder_ffn_dim": 23, "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 7, "d_ff": 23, "num_layers": 1, "num_heads": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 50, "n_embd": 24, "n_layer": 1, "n_head": 4}),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED),
    "Qwen3ForCausalLM": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GROUPED, "head_dim": 8}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 50, "hidden_size": 24, "n_layer": 1, "n_head": 3}),
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": 50, "hidden_size": 20, "num_hidden_layers": 1, "state_size": 5, "time_step_rank": 3},
    ),
    "T5ForConditionalGeneration": ("T5Config", T5),
    "BartForConditionalGeneration": ("BartConfig", SEQUENCES),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_language_model_with_its_cache_grows_wherever_it_says_it_can(name: str) -> None:
    config, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**SPECIAL, **settings)).double().eval()
    assert model.config.use_cache
    ids = torch.randint(3, 50, (2, 7))
    inputs = {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}
    graph = auxin.trace(model, inputs)
    assert not model._forward_hooks
    assert graph.growable()
    with torch.no_grad():
        before = model(**inputs).logits
    for group in graph.growable():
        event = auxin.widen(model, group, 2, graph=graph, method=Net2Net(asymmetry=0.5))
        assert event.changes[0].after - event.changes[0].before == 2
    with torch.no_grad():
        after = model(**inputs).logits
    assert (after - before).abs().max() < 1e-10 * max(1.0, float(before.abs().max()))


def test_experts_in_one_tensor_grow_and_are_saved_as_one_of_its_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # torch's grouped product takes rows of whole 16 bytes.
    experts = {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = {**GROUPED, "num_hidden_layers": 2, **experts}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**config)).eval()
    ids = torch.randint(3, 50, (2, 9))
    before = model(ids).logits
    graph = auxin.trace(model, {"input_ids": ids})
    names = [group.name for group in graph.growable() if "experts" in group.name]
    assert len(names) == 2 and {graph[name].size for name in names} == {24}
    for name, method in zip(names, ("random", "net2net"), strict=True):
        assert model.config.intermediate_size == 24, "one number cannot describe two sizes"
        auxin.widen(model, name, 4, graph=graph, method=method)
    assert model.config.intermediate_size == 28
    model.save_pretrained(tmp_path)
    again = transformers.MixtralForCausalLM.from_pretrained(tmp_path)
    assert (again(ids).logits - before).abs().max() < 1e-5


def test_the_caches_of_a_model_that_grew_still_generate() -> None:
    """Generating token by token with the cache gives what whole forwards give."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SPECIAL, **GROUPED)).double().eval()
    ids = torch.randint(3, 50, (1, 5))
    before = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    graph = auxin.trace(model, {"input_ids": ids})
    for group in graph.growable():
        auxin.widen(model, group, 1, graph=graph, method="net2net")
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None), before)


LAYERS = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4}, "transformer.h"),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED, "model.layers"),
    "Qwen2ForCausalLM": ("Qwen2Config", GROUPED, "model.layers"),
    "Gemma2ForCausalLM": ("Gemma2Config", {**GROUPED, "head_dim": 8}, "model.layers"),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8}, "model.layers"),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {**GROUPED, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 16, "num_local_experts": 2},
        "model.layers",
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL, "gpt_neox.layers"),
    "OPTForCausalLM": (
        "OPTConfig",
        {**SMALL, "ffn_dim": 23, "word_embed_proj_dim": 60, "max_position_embeddings": 32},
        "model.decoder.layers",
    ),
    "MambaForCausalLM": (
        "MambaConfig", {"vocab_size": 50, "hidden_size": 20, "state_size": 5, "time_step_rank": 3}, "backbone.layers",
    ),
    # Layers that return tuples.
    "BloomForCausalLM": (
        "BloomConfig", {"vocab_size": 50, "hidden_size": 24, "n_layer": 2, "n_head": 3}, "transformer.h",
    ),
    "FalconForCausalLM": ("FalconConfig", SMALL, "transformer.h"),
    "MptForCausalLM": (
        "MptConfig",
        {"vocab_size": 50, "d_model": 24, "n_layers": 2, "n_heads": 3, "max_seq_len": 32},
        "transformer.blocks",
    ),
}  # fmt: skip


def language_model(name: str) -> tuple[Any, str]:
    config, settings, layers = LAYERS[name]
    size = next((key for key in ("n_layer", "n_layers") if key in settings), "num_hidden_layers")
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**SPECIAL, **{**settings, size: 2})).eval(), layers


def generated(model: Any, *inputs: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(*inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_a_language_model_gets_more_layers_and_is_saved_as_one_of_its_class(name: str, tmp_path: Path) -> None:
    """Copies of layers leave the function alone, have cache entries of their own, and end up in the list of layers."""
    model, layers = language_model(name)
    ids = torch.randint(3, 50, (2, 7))
    graph = auxin.trace(model, {"input_ids": ids})
    with torch.no_grad():
        before, tokens = model(ids).logits, generated(model, ids)
    for number in (1, 0, 1):
        auxin.deepen(model, f"{layers}.{number}", graph=graph)
    assert model.config.num_hidden_layers == 5
    with torch.no_grad():
        assert (model(ids).logits - before).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    assert torch.equal(generated(model, ids), tokens)
    for parameter_name, parameter in model.named_parameters():
        if ".grown." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        after, tokens = model(ids).logits, generated(model, ids)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(generated(model, ids, use_cache=False), tokens)
    plain = auxin.unnest(model, {"input_ids": ids})
    assert torch.equal(generated(plain, ids), tokens)
    plain.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, after)
    assert torch.equal(generated(loaded, ids), tokens)
    assert not any("grown" in key for key, _ in plain.named_parameters())


def test_layers_that_share_a_cache_by_their_place_are_not_copied() -> None:
    model, _ = language_model("LlamaForCausalLM")
    model.config.num_kv_shared_layers = 1
    graph = auxin.trace(model, {"input_ids": torch.randint(3, 50, (2, 7))})
    assert not any(site.neutral for site in graph.sites)


def test_copied_layers_train_with_checkpointed_activations() -> None:
    model, layers = language_model("LlamaForCausalLM")
    ids = torch.randint(3, 50, (2, 7))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    auxin.deepen(model, f"{layers}.1", graph=auxin.trace(model, {"input_ids": ids}), optimizer=optimizer)
    model.train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer.step()
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items() if ".grown." in key)


PAIRS = {
    # Its generate() takes the encoder's number of layers for the decoder's.
    "T5ForConditionalGeneration": (
        "T5Config",
        {**T5, "num_layers": 3, "num_decoder_layers": 2},
        ("encoder.block.1", "decoder.block.1", "decoder.block.1"),
    ),
    "MBartForConditionalGeneration": (
        "MBartConfig",
        {**SEQUENCES, "encoder_layers": 2, "decoder_layers": 2},
        ("model.encoder.layers.0", "model.decoder.layers.1", "model.decoder.layers.1"),
    ),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {
            "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 23, "decoder_ffn_dim": 23, "num_mel_bins": 8,
            "max_source_positions": 10, "max_target_positions": 32,
        },
        ("model.encoder.layers.1", "model.decoder.layers.1", "model.decoder.layers.0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_an_encoder_and_its_decoder_get_more_layers_and_are_saved_as_their_class(name: str, tmp_path: Path) -> None:
    config, settings, sites = PAIRS[name]
    torch.manual_seed(0)
    settings = {key: value for key, value in settings.items() if name[0] != "W" or key != "max_position_embeddings"}
    model = getattr(transformers, name)(
        getattr(transformers, config)(
            **{**SPECIAL, "decoder_start_token_id": 2},
            **{key: value for key, value in settings.items() if key != "decoder_start_token_id"},
        )
    ).eval()
    ids = torch.randint(3, 50, (2, 7))
    source = {"input_features": torch.randn(2, 8, 20)} if name[0] == "W" else {"input_ids": ids}
    inputs = {**source, "decoder_input_ids": ids}
    graph = auxin.trace(model, inputs)
    with torch.no_grad():
        before, tokens = model(**inputs).logits, generated(model, **source)
    sizes = model.config.to_dict()
    for site in sites:
        auxin.deepen(model, site, graph=graph)
    changed = {key: value for key, value in model.config.to_dict().items() if sizes.get(key) != value}
    assert sorted(value - sizes[key] for key, value in changed.items()) == [1, 2]
    with torch.no_grad():
        assert (model(**inputs).logits - before).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    assert torch.equal(generated(model, **source), tokens)
    for parameter_name, parameter in model.named_parameters():
        if ".grown." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        after, tokens = model(**inputs).logits, generated(model, **source)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(generated(model, **source, use_cache=False), tokens)
    auxin.unnest(model, inputs).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, after)
    assert torch.equal(generated(loaded, **source), tokens)


VISION: dict[str, tuple[str, dict[str, Any], int, tuple[str, ...]]] = {
    "ViTForImageClassification": (
        "ViTConfig",
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "patch_size": 8},
        16,
        ("vit.layers.0", "vit.layers.1", "vit.layers.0"),
    ),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
        64,
        ("convnext.encoder.stages.1.layers.0", "convnext.encoder.stages.2.layers.0"),
    ),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 2], "layer_type": "basic"},
        32,
        ("resnet.encoder.stages.0.layers.1", "resnet.encoder.stages.1.layers.1", "resnet.encoder.stages.1.layers.1"),
    ),
    "SwinForImageClassification": (
        "SwinConfig",
        {"patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        32,
        ("swin.encoder.layers.1.blocks.0",),
    ),
}


@pytest.mark.parametrize("name", VISION)
def test_a_vision_model_gets_more_blocks_and_is_saved_as_one_of_its_class(name: str, tmp_path: Path) -> None:
    config, settings, size, sites = VISION[name]
    extra = {"image_size": size} if "patch_size" in settings else {}
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings, **extra)).eval()
    images = torch.randn(2, 3, size, size)
    graph = auxin.trace(model, {"pixel_values": images})
    for site in sites:
        auxin.deepen(model, site, graph=graph)
    for parameter_name, parameter in model.named_parameters():
        if ".grown." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    auxin.unnest(model, {"pixel_values": images}).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)


def test_a_block_that_its_class_builds_by_its_place_is_reported() -> None:
    """Every other block of Swin has shifted windows: a copy of one stands where the class puts the other kind."""
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=12, depths=[2], num_heads=[2], window_size=4
    )
    model = transformers.SwinForImageClassification(config).eval()
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    auxin.deepen(model, "swin.encoder.layers.0.blocks.1", graph=auxin.trace(model, images))
    with pytest.warns(UserWarning, match=r"makes swin.encoder.layers.0.blocks.2.shift_size 0, here it is 2"):
        plain = auxin.unnest(model, images)
    with torch.no_grad():
        assert torch.equal(plain(**images).logits, model(**images).logits)


def test_the_table_of_positions_that_only_the_first_layer_has_is_reported() -> None:
    model = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    ids = {"input_ids": torch.randint(3, 50, (2, 7))}
    auxin.deepen(model, "encoder.block.0", graph=auxin.trace(model, ids))
    with pytest.warns(UserWarning, match=r"makes encoder.block.1.*.has_relative_attention_bias False, here"):
        auxin.unnest(model, ids)
