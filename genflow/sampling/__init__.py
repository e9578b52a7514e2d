"""Sample from trained runs.

    engine           load a run's averaged weights, and draw samples that depend only on their own seed
    prompts          prompts as a condition, by the run's text encoder
    interpolation    interpolate between two images, two seeds or two prompts
    encode           latents of a dataset
    autoencoders     find, load and copy the autoencoder that makes them
    diffusers_folder, diffusers_config
                     read and write a local folder of diffusers' AutoencoderKL
    diffusers_sd3, diffusers_pipelines
                     read the transformer of Stable Diffusion 3, and write a run as a pipeline
    reflow           pairs of noise and samples that a teacher draws
    files            write samples as a grid, a folder, an array or a table
    export           folders of safetensors, diffusers, torch.export and ONNX
    programs         the nets of a run as programs, and the Python file that draws samples with them
"""
