#!/usr/bin/env bash
# From a knowledge graph to a model that answers, in five minutes on a laptop: the commands you would type.
#
#   examples/demo.sh [FOLDER]        FOLDER (default demo_output) is made anew at each run
#
# The model is a toy that starts from random weights; with ChatGLM-6B the steps are the same, only that
# its folder takes the place of what steps 2 and 3 make.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-demo_output}
if [[ -e $out && ! -e $out/.made-by-demo ]]; then
  echo "demo: $out exists and is not the output of an earlier demo; name another folder." >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out"
touch "$out/.made-by-demo"
# Two processes share the machine; DeepSpeed may not look for GPUs here.
export DS_ACCELERATOR=cpu

say() { printf '\n== %s\n' "$*"; }

say "1. Knowledge graph -> questions and answers"
medsft data build \
  --graph medsft/knowledge/sample.jsonl \
  --output "$out/pairs.jsonl" \
  --kinds single --num_phrasings 1

say "2. A small tokenizer in the released layout"
medsft tokenizer \
  --train_file "$out/pairs.jsonl" \
  --output_dir "$out/tokenizer"

say "3. A toy ChatGLM with random weights"
medsft init \
  --preset toy \
  --tokenizer "$out/tokenizer" \
  --output_dir "$out/base"

say "4. Fine-tuning: two processes, ZeRO-3"
python -m launcher run --num-gpus 2 medsft/train.py \
  --deepspeed ds_configs/zero3_cpu.json \
  --model_name_or_path "$out/base" \
  --train_file "$out/pairs.jsonl" \
  --output_dir "$out/run" \
  --max_source_length 64 \
  --max_target_length 64 \
  --per_device_train_batch_size 16 \
  --learning_rate 2e-3 \
  --lr_scheduler_type cosine \
  --num_train_epochs 50 \
  --logging_steps 20 --sample_steps 236 \
  --save_strategy steps --save_steps 200

say "5. Ten of the questions: scores of the answers"
# Ten lines spread over the whole file.
awk -v lines="$(wc -l <"$out/pairs.jsonl")" 'int(NR * 10 / lines) > int((NR - 1) * 10 / lines)' \
  "$out/pairs.jsonl" >"$out/questions.jsonl"
medsft eval \
  --model "$out/run" \
  --questions "$out/questions.jsonl"

say "6. The same ten, before and after"
medsft compare \
  --base "$out/base" \
  --tuned "$out/run" \
  --questions "$out/questions.jsonl" \
  --min_exact 0.8 \
  --output "$out/run/evaluation/before-after.html"

say "7. The whole run on one page"
medsft report "$out/run"

say "Talk to it, look at it"
printf 'medsft chat --greedy --model %q\n' "$out/run"
printf 'medsft checkpoint list %q\n' "$out/run"
printf 'make tensorboard RUNS=%q\n' "$out"
