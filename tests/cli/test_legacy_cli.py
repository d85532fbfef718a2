import pytest

from florence2.cli.legacy_cli import PREDICT, TRAIN, translate
from florence2.errors import UserError


@pytest.mark.parametrize(
    ("published", "now"),
    [
        ("--dataset d --output_dir o --batch_size 4", "--dataset d --output_dir o --batch_size 4"),
        ("-ac --rank 8", "--gradient_checkpointing --rank 8"),
        ("--activation-checkpointing", "--gradient_checkpointing"),
        ("--optimizer_name AdamW8bit", "--optim adamw_bnb_8bit"),
        ("--optimizer_name=AdamW", "--optim adamw_torch"),
        ("--optimizer_name ProdigyPlusScheduleFree", "--optim prodigyplus.ProdigyPlusScheduleFree"),
        ("--optimizer_name CAME", "--optim CAME"),
        ("--rslora --init_lora_weights pissa", "--lora_args use_rslora=true init_lora_weights=pissa"),
        ("--name cats", "--trainer_args run_name=cats"),
        ("--caption_file_suffix _combined", "--caption_extension _combined.txt"),
        ("--prefix=--a --suffix=-", "--prefix=--a --suffix=-"),
        ("--target_modules qkv proj --quantize_not x", "--target_modules qkv proj --quantize_not x"),
    ],
)
def test_published_training_flags_are_translated(published: str, now: str) -> None:
    assert translate(published.split(), TRAIN) == now.split()


def test_dictionary_of_optimizer_arguments_becomes_pairs() -> None:
    words = translate(["--optimizer_args", "{'betas': 0.9, 'safe': true}"], TRAIN)
    assert words == ["--optimizer_args", "betas=0.9", "safe=True"]


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--optimizer_rank", "--optim"),
        ("--accumulation_rank", "--optim"),
        ("--generated_suffix", "--caption_extension"),
    ],
)
def test_unsupported_flag_is_refused_with_a_hint(flag: str, hint: str) -> None:
    with pytest.raises(UserError, match=flag) as caught:
        translate([flag, "1"], TRAIN)
    assert hint in caught.value.hint


def test_older_captioning_flags_are_translated() -> None:
    words = translate("--peft_model m --images d --save_captions --append --max_token_length 75".split(), PREDICT)
    assert words == "--model_path m --input_path d --sidecar .txt --if_exists append --max_length 75".split()
    assert translate(["--overwrite"], PREDICT) == ["--if_exists", "overwrite", "--overwrite_output"]
