#!/usr/bin/env bash
# Train the models of docs/results.md, and store their results for the page:
#
#     OMP_NUM_THREADS=1 benchmarks/results.sh SECTION FOLDER
#
# SECTION is mnist (trainings of 98, 49, 90 and 60 minutes, and twelve of 8), imdb (four of 36 minutes and three of 6), ptb
# (three of 12 minutes), speech (twelve of 45 minutes), defaults (35 of 5 minutes) or small (all tables at scale small).
# Runs that FOLDER already contains are kept, and interrupted ones are resumed. MINUTES sets the minutes of each run
# (mnist: of the longest), CORES the number of runs side by side. Section mnist also exports the best model to
# FOLDER/weights. Afterwards, look at `git diff docs`.
set -euo pipefail
cd "$(dirname "$0")/.."
section=$1
folder=$2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# run_of LABEL: the run folder of a label.
run_of() {
  echo "$folder/$section-$(printf '%s' "$1" | tr -cs 'A-Za-z0-9.' '-')"
}

# run LABEL OPTIONS...: train, evaluate with k = 25 on 1,000 sequences, and store under the label.
run() {
  local label=$1
  shift
  local run
  run=$(run_of "$label")
  if [ ! -f "$run/summary.json" ]; then
    if [ -f "$run/config.json" ]; then
      python scripts/svi_train.py --resume "$run"
    else
      python scripts/svi_train.py --output-dir "$run" "$@"
    fi
  fi
  python scripts/evaluate.py "$run" --num-samples 25 --max-sequences 1000
  if [ "$section" = mnist ] || [ "$section" = mnist-convolutional ]; then
    python scripts/evaluate.py "$run" --split train --num-samples 1 --max-sequences 10000 --diagnosed-sequences 0
  fi
  python docs/results.py --run "$section" "$label" "$run"
}

# card NAME LABEL: export the model with the label, and copy its card to the documentation.
card() {
  rm -rf "$folder/weights/$1"
  python scripts/export.py "$(run_of "$2")" "$folder/weights/$1"
  mkdir -p docs/cards
  cp "$folder/weights/$1/README.md" "docs/cards/$1.md"
}

case $section in
mnist)
  minutes=${MINUTES:-98}
  recipe=(--dataset mnist --hidden-size 512 --emission-depth 2 --dropout 0.2 --weight-decay 0.1 --average-decay 0.999
    --learning-rate 0.004 --warmup-updates 200 --learning-rate-decay linear --decay-start 0.5)
  common=("${recipe[@]}" --precision bf16 --emission autoregressive-bernoulli --emission-mlp-size 512)
  regular=("${common[@]}" --recurrent-dropout 0.3 --shift 1 --shift-epochs 20)
  latent=(--mlp-size 128 --backward-size 256)
  zforcing="Z-Forcing, alpha = beta = 0.0005"
  with_costs=("${latent[@]}" --model zforcing --alpha 0.0005 --beta 0.0005)
  run "$zforcing" "${regular[@]}" "${with_costs[@]}" --max-minutes "$minutes"
  run "RNN (LSTM)" "${regular[@]}" --max-minutes "$((minutes / 2))" --model rnn
  for label in "$zforcing" "RNN (LSTM)"; do
    python scripts/evaluate.py "$(run_of "$label")" --num-samples 25 --diagnosed-sequences 0
    python scripts/evaluate.py "$(run_of "$label")" --num-samples 1000 --max-sequences 100 --diagnosed-sequences 0
    python docs/results.py --run "$section" "$label" "$(run_of "$label")"
  done
  section=mnist-convolutional
  convolutional=("${recipe[@]}" --emission convolutional-bernoulli --input-window 3 --emission-mlp-size 64
    --activation relu --max-updates 4700 --valid-sequences 2000)
  run "$zforcing" "${convolutional[@]}" "${with_costs[@]}"
  run "RNN (LSTM)" "${convolutional[@]}" --model rnn
  card mnist-zforcing "$zforcing"
  section=mnist-convolutional-costs
  larger=("${convolutional[@]}" "${latent[@]}" --model zforcing --alpha 0.002 --beta 0.002 --max-updates 1564
    --learning-rate-decay none --decay-start 0)
  run "Z-Forcing, alpha = beta = 0.002" "${larger[@]}"
  run "Z-Forcing, alpha = beta = 0.002, --reverse-emission bernoulli" "${larger[@]}" --reverse-emission bernoulli
  section=mnist-short
  short=("${common[@]}" --max-minutes 8)
  run "$zforcing" "${short[@]}" "${with_costs[@]}"
  run "Z-Forcing, no costs" "${short[@]}" "${latent[@]}" --model zforcing --alpha 0 --beta 0
  run "Variational Bi-LSTM" "${short[@]}" "${latent[@]}" --model variational-bilstm
  run "SRNN" "${short[@]}" "${latent[@]}" --model srnn
  run "VRNN" "${short[@]}" --mlp-size 128 --model vrnn
  run "RNN (LSTM)" "${short[@]}" --model rnn
  section=mnist-seeds  # with the numbers of updates of seed 0
  for seed in 1 2; do
    seeded=("${common[@]}" --seed "$seed")
    run "RNN (LSTM), seed $seed" "${seeded[@]}" --model rnn --max-updates 3537
    run "$zforcing, seed $seed" "${seeded[@]}" "${with_costs[@]}" --max-updates 2275
    run "Variational Bi-LSTM, seed $seed" "${seeded[@]}" "${latent[@]}" --model variational-bilstm --max-updates 2303
  done
  section=mnist-short
  for label in "RNN (LSTM)" "$zforcing" "Variational Bi-LSTM"; do
    python docs/results.py --run mnist-seeds "$label, seed 0" "$(run_of "$label")"
  done
  ;;
imdb)
  options=(--scale paper --max-minutes "${MINUTES:-36}" --max-sequences 1000 --output-dir "$folder")
  for table in zf-table2 zf-table3; do
    python scripts/reproduce.py $table "${options[@]}"
    python docs/results.py --table "$(ls -t "$folder"/$table-paper*.md | head -1)"
  done
  python scripts/reproduce.py vbl-table3 --scale paper --max-minutes 6 --max-sequences 1000 --precision bf16 \
    --output-dir "$folder/bf16"
  python docs/results.py --table "$folder/bf16/vbl-table3-paper-6min-n1000-bf16.md"
  ;;
ptb)
  minutes=${MINUTES:-12}
  common=(--dataset ptb --precision bf16 --hidden-size 512 --mlp-size 512 --max-minutes "$minutes" --weight-decay 0.01
    --learning-rate 0.004 --warmup-updates 200 --learning-rate-decay linear --decay-start 0.5)
  for model in rnn variational-bilstm; do
    run "$model" "${common[@]}" --model $model
  done
  run zforcing "${common[@]}" --model zforcing --alpha 0.005 --beta 0.0025
  ;;
speech)
  minutes=${MINUTES:-45}
  for data in blizzard timit; do
    section=$data
    for model in rnn srnn vrnn zforcing variational-bilstm; do
      run "$model" --dataset $data --model $model --emission gaussian --max-minutes "$minutes"
    done
    run "rnn, autoregressive Gaussian" --dataset $data --model rnn --emission autoregressive-gaussian \
      --max-minutes "$minutes"
  done
  ;;
defaults)
  python benchmarks/defaults.py --minutes "${MINUTES:-5}" --jobs "${CORES:-1}" --output-dir "$folder/defaults" \
    --output "$folder/defaults.json"
  python docs/results.py --defaults "$folder/defaults.json"
  ;;
small)
  python scripts/reproduce.py all --scale small --precision bf16 --jobs "${CORES:-1}" --output-dir "$folder"
  for table in "$folder"/*-small-bf16.md; do
    python docs/results.py --table "$table"
  done
  tight=$folder/runs/small/mnist-zf-aux-seed0
  for k in 1 5 25 100; do
    python scripts/evaluate.py "$tight" --num-samples "$k" --max-sequences 1000 --diagnosed-sequences 0
  done
  python docs/results.py --run tightness "Z-Forcing" "$tight"
  ;;
*)
  echo "there is no section $section: choose mnist, imdb, ptb, speech, defaults or small" >&2
  exit 2
  ;;
esac
