#!/usr/bin/env bash
# Does training put a graph's facts into a model? Recall (learnt facts in unseen words) and generalisation
# (unseen entities) apart, on a toy model: about five minutes on two cores.
#
#   examples/recall.sh [FOLDER]      FOLDER (default recall_output) is made anew at each run
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-recall_output}
if [[ -e $out && ! -e $out/.made-by-recall ]]; then
  echo "recall: $out exists and is not the output of an earlier run; name another folder." >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out"
touch "$out/.made-by-recall"
export DS_ACCELERATOR=cpu

medsft data split \
  --graph medsft/knowledge/sample.jsonl \
  --output_dir "$out/data" \
  --kinds single --num_phrasings 3 --shares 0.8,0,0.2
medsft tokenizer --train_file "$out/data/train.jsonl" --output_dir "$out/tokenizer"
medsft init --preset toy --tokenizer "$out/tokenizer" --output_dir "$out/base"
python -m launcher run --num-gpus 2 medsft/train.py \
  --deepspeed ds_configs/zero3_cpu.json \
  --model_name_or_path "$out/base" \
  --train_file "$out/data/train.jsonl" \
  --output_dir "$out/run" \
  --max_source_length 64 --max_target_length 64 \
  --per_device_train_batch_size 16 \
  --learning_rate 2e-3 --lr_scheduler_type cosine \
  --num_train_epochs 50 \
  --logging_steps 50 --save_strategy no

printf '\n== Recall: learnt facts, unseen words\n'
medsft compare --base "$out/base" --tuned "$out/run" --questions "$out/data/recall.jsonl" \
  --min_exact 0.9 --output "$out/recall.html" | grep -E 'exact answers|facts|written'
printf '\n== Generalisation: unseen entities (a model cannot know what it was never told)\n'
medsft compare --base "$out/base" --tuned "$out/run" --questions "$out/data/test.jsonl" \
  --output "$out/generalisation.html" | grep -E 'exact answers|facts|written'
