#!/usr/bin/env bash
# Checks on this machine's GPUs what the tests can only pretend on a CPU, and says what was checked.
#
#   tools/gpu_check.sh [OUTPUT]          all of it, some ten minutes; logs and results in OUTPUT
#   CHECK_ON_CPU=1 tools/gpu_check.sh    the same commands on a CPU, to try the script itself
#
# Every step is one line of the table at the end: ok, or FAILED with the log to read.
set -u
cd "$(dirname "$0")/.."
output=${1:-outputs/gpu_check}
mkdir -p "$output"
python=${PYTHON:-python}

if [ -n "${CHECK_ON_CPU:-}" ]; then
    export ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
    gpus=0 processes=2
else
    gpus=$("$python" -c "import torch; print(torch.cuda.device_count())")
    processes=$gpus
    if [ "$gpus" = 0 ]; then
        echo "no GPU is visible to torch; CHECK_ON_CPU=1 $0 tries the commands on a CPU" >&2
        exit 2
    fi
fi
launch=("$python" -m torch.distributed.run --standalone --nproc_per_node "$processes")
alone=("$python" -m torch.distributed.run --standalone --nproc_per_node 1)
ae=(train_ae.py --config configs/ae/official_debug.yaml)
dit=(train_diffusion.py --config configs/diffusion/shapes_debug.yaml)
text=(train_diffusion.py --config configs/diffusion/shapes_debug.yaml class_conditional=false
    "sample_classes=[]" text_encoder=checkpoints/shapes "sample_prompts=[a red circle]")
language=(train_language.py --config configs/language/shapes_bert_debug.yaml)
results=()
failed=0

check() { # name, command...
    local name=$1 start=$SECONDS
    shift
    rm -rf "$output/$name"
    if "$@" >"$output/$name.log" 2>&1; then
        results+=("ok      $name  ($((SECONDS - start)) s)")
    else
        results+=("FAILED  $name  (read $output/$name.log)")
        failed=1
    fi
    echo "${results[-1]}"
}

train() { # name, how to start python, script and arguments...
    local name=$1
    shift
    check "$name" "$@" "output=$output/$name"
}

"$python" - <<'PY' | tee "$output/machine.txt"
import accelerate, diffusers, torch, transformers
print("torch", torch.__version__, "diffusers", diffusers.__version__, "transformers",
      transformers.__version__, "accelerate", accelerate.__version__)
for index in range(torch.cuda.device_count()):
    card = torch.cuda.get_device_properties(index)
    print(f"GPU {index}: {card.name}, {card.total_memory / 2**30:.0f} GiB")
PY

# One process: fp32, bf16, compile, gradient checkpointing; then resumed.
train ae "$python" "${ae[@]}"
train ae_bf16 "$python" "${ae[@]}" mixed_precision=bf16
train ae_compile "$python" "${ae[@]}" mixed_precision=bf16 compile=true
train ae_checkpointing "$python" "${ae[@]}" gradient_checkpointing=true
train diffusion "$python" "${dit[@]}"
train diffusion_bf16 "$python" "${dit[@]}" mixed_precision=bf16
train diffusion_compile "$python" "${dit[@]}" mixed_precision=bf16 compile=true
train diffusion_paper "$python" train_diffusion.py --config configs/diffusion/paper_debug.yaml \
    mixed_precision=bf16 compile=true
train diffusion_text "$python" "${text[@]}" mixed_precision=bf16
train language "$python" "${language[@]}"
train language_bf16 "$python" "${language[@]}" mixed_precision=bf16
check resumed "$python" "${ae[@]}" "output=$output/ae" steps=16

# NCCL with one process, then with all GPUs, then sharded.
train ae_nccl_1 "${alone[@]}" "${ae[@]}"
batch=("batch_size=$((2 * processes))" "validation_batch_size=1")
train ae_all "${launch[@]}" "${ae[@]}" "${batch[@]}"
train diffusion_all "${launch[@]}" "${dit[@]}" "${batch[@]}"
train language_all "${launch[@]}" "${language[@]}" "batch_size=$((8 * processes))"
sharded=("$python" -m accelerate.commands.launch --config_file configs/accelerate/fsdp2.yaml
    --num_processes "$processes" --mixed_precision no)
train ae_fsdp2 "${sharded[@]}" "${ae[@]}" "${batch[@]}"
train diffusion_fsdp2 "${sharded[@]}" "${dit[@]}" "${batch[@]}"
train language_fsdp2 "${sharded[@]}" "${language[@]}" "batch_size=$((8 * processes))"

# Encoding, reconstruction, evaluation, and the shipped pipeline with every scheduler.
check encode "$python" encode.py --config configs/encode/shapes_debug.yaml "output=$output/encode"
clip=$output/clip/sample_0000.mp4
check clip "$python" sample.py --prompt "a red circle moving left" --steps 4 --output "$output/clip"
check reconstruct "$python" reconstruct.py "$clip" --model checkpoints/shapes/autoencoder \
    --output "$output/reconstruct"
for name in euler heun dpm++ unipc; do
    check "sample_$name" "$python" sample.py --prompt "a red circle moving left" --steps 6 \
        --scheduler "$name" --output "$output/sample_$name"
done
check sample_bfloat16 "$python" sample.py --prompt "a red circle moving left" --steps 6 \
    --dtype bfloat16 --output "$output/sample_bfloat16"
check sample_long "$python" sample.py --prompt "a red circle moving left" --steps 4 \
    --num-frames 40 --output "$output/sample_long"
check sample_structure "$python" sample.py --structure-from "$clip" --steps 4 \
    --output "$output/sample_structure"
check evaluate_reconstruction "$python" evaluate.py reconstruction \
    --config configs/evaluation/reconstruction_debug.yaml "output=$output/evaluate_reconstruction"
check evaluate_adherence "$python" evaluate.py adherence \
    --config configs/evaluation/adherence_debug.yaml "output=$output/evaluate_adherence"

# The same video on the CPU and on the GPU, up to rounding: same noise, bit for bit.
check cpu_equals_gpu "$python" - <<'PY'
import torch
from diffusion import VidTwinPipeline

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = VidTwinPipeline.from_pretrained("checkpoints/shapes")
asked = {"prompt": "a red circle moving left", "seed": 0, "num_inference_steps": 8}
expected = pipe(**asked).videos
found = pipe.to(device)(**asked).videos.cpu()
difference = (found - expected).abs().mean().item()
print("mean absolute difference of the videos, in [0, 1]:", difference)
assert difference < 0.01
PY

printf '%s\n' "" "${results[@]}" | tee "$output/results.txt"
exit $failed
