#!/usr/bin/env bash
# Makes the shipped pipeline, checkpoints/shapes, from nothing: two days on one CPU core.
#
#   tools/make_default.sh [OUTPUT]            everything goes below OUTPUT (outputs/default)
#   tools/make_default.sh --debug [OUTPUT]    every stage for a few steps of a tiny model
#
# Stopped at any moment and run again it goes on where it was: a stage that is done does nothing.
# The pipeline in half precision is OUTPUT/shipped; copy it to checkpoints/shapes to ship it.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # tools too run what stands here
ae=() bert=() latents=() transformer=()
if [ "${1:-}" = --debug ]; then
    shift
    brief=(steps=2 validation_samples=2 validation_batch_size=2 optimizer.warmup_steps=1)
    often=(log_every=1 validate_every=2 save_every=1)
    ae=("${brief[@]}" "${often[@]}" batch_size=2 compile=false model.height=32 model.width=32
        model.hidden_size=32 model.encoder_depth=1 model.decoder_depth=1 model.query_hidden_size=16
        model.query_intermediate_size=32 model.structure_base_channels=16
        model.refinement_channels=8 discriminator_optimizer.warmup_steps=1)
    bert=("${brief[@]}" "${often[@]}" batch_size=8 accumulation=1 tokenizer.vocabulary_size=400
        tokenizer.train_texts=500 model.hidden_size=32 model.num_layers=2 model.num_heads=2
        model.intermediate_size=64)
    latents=(max_samples=8 max_validation_samples=4 caption_variants=2 shard_size=4 batch_size=4)
    transformer=("${brief[@]}" "${often[@]}" batch_size=4 model.preset=debug model.hidden_size=null
        model.depth=null model.num_heads=null "sample_prompts=[]")
fi
output=${1:-outputs/default}

stage() { # script, config, folder, options...
    echo "== $output/$3: $1 --config configs/$2.yaml"
    "$python" "$1" --config "configs/$2.yaml" "output=$output/$3" "${@:4}"
}

stage train_ae.py ae/default_1_drawing ae_1_drawing ${ae[@]+"${ae[@]}"}
stage train_ae.py ae/default_2_pairs ae_2_pairs \
    "init_from=$output/ae_1_drawing/autoencoder_ema" ${ae[@]+"${ae[@]}"}
stage train_ae.py ae/default_3_decay ae_3_decay \
    "init_from=$output/ae_2_pairs/autoencoder_ema" ${ae[@]+"${ae[@]}"}
stage encode.py encode/default latents \
    "autoencoder=$output/ae_3_decay/autoencoder_ema" ${latents[@]+"${latents[@]}"}
stage train_language.py language/default_bert bert ${bert[@]+"${bert[@]}"}
stage train_language.py language/default_paraphrases paraphrases \
    "init_from=$output/bert/language_model" ${bert[@]+"${bert[@]}"}
stage train_diffusion.py diffusion/default transformer \
    "autoencoder=$output/ae_3_decay/autoencoder_ema" "cache=$output/latents" \
    "text_encoder=$output/paraphrases/language_model" ${transformer[@]+"${transformer[@]}"}
"$python" tools/ship_pipeline.py --pipeline "$output/transformer/pipeline" --output "$output/shipped"
