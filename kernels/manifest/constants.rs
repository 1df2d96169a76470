// Constants that kernels, plans and the build share: kTileM in C++ is TILE_M here.
//
// Included twice, each time with a `constants!` of its own. src/manifest.rs makes Rust constants of
// them, in modules named like the kernel files. shared.rs makes the same and, for the numbers, the
// headers `manifest/ARCH/FILE.cuh` that the kernels include.

constants! {
    common {
        limits {
            /// Projections that share X, at most.
            const MAX_PROJECTIONS: usize = 4;
        }
    }
    sm80 {
        tile {
            /// Tiles along r of project.cu and linear.cu.
            const RANK_TILES: [usize; 2] = [16, 64];
        }
        linear {
            /// Rows and columns of a tile of the output.
            const TILES: [[usize; 2]; 5] = [[128, 256], [128, 128], [128, 64], [64, 64], [64, 32]];
            /// Tiles for rows that do not start at multiples of 16 bytes: their instances shift.
            const UNALIGNED_TILES: [[usize; 2]; 3] = [[128, 64], [64, 64], [64, 32]];
            /// Tiles of dX with dropout, and its tiles for such rows.
            const DROPOUT_TILES: [[usize; 2]; 3] = [[128, 256], [128, 128], [64, 64]];
            const UNALIGNED_DROPOUT_TILES: [[usize; 2]; 1] = [[64, 64]];
            /// Columns of a tile that a step is one warp deep for; two for narrower ones.
            const WIDE_TILE_N: usize = 256;
            /// Columns of a step for each warp along k.
            const WARP_K: usize = 32;
            /// The stages of every tile, all the shared memory of a CTA: an SM of compute capability
            /// 8.6 has 100 KiB.
            const STAGES_BYTES: usize = 96 << 10;
            const THREADS: usize = 256;
            /// Rows of S for which there is one flag.
            const FLAG_ROWS: usize = 128;
            /// Columns of a tile of dA, or of dB's transpose.
            const GRAD_COLS: usize = 64;
        }
        projection {
            /// Rows of a tile of S, columns of its steps, and columns of a split along k.
            const PROJ_ROWS: usize = 32;
            const PROJ_STEP: usize = 128;
            const PROJ_SPLIT: usize = 512;
            const PROJ_THREADS: usize = 256;
        }
        align {
            const THREADS: usize = 128;
            /// Columns of a row that a CTA copies.
            const COLS: usize = THREADS * 8;
            /// Copies of a launch: X, A, and W0 and dH of each layer.
            const COPIES: usize = 2 * super::super::common::limits::MAX_PROJECTIONS + 2;
        }
        project {
            /// Rows of a tile, and a step.
            const TILE_M: usize = 32;
            const TILE_K: usize = 128;
            const STAGES: usize = 4;
            const THREADS: usize = 256;
            /// Warps along k.
            const WARPS: usize = 4;
            /// Rows, warps along k and stages of a tile of 16 ranks with dropout, which random
            /// numbers bind. Small tiles give work to all SMs in short batches.
            const DROPOUT_TILE_M: usize = 16;
            const DROPOUT_WARPS: usize = 8;
            const DROPOUT_STAGES: usize = 3;
            const DROPOUT_CTAS_PER_SM: usize = 4;
        }
        decode {
            /// Tokens of a layer, at most.
            const MAX_TOKENS: usize = 32;
            const THREADS: usize = 256;
            /// Shared memory of a CTA, at most. An SM of compute capability 8.6 has 100 KiB.
            const SHARED_BYTES: usize = 98 << 10;
            /// The same where lanes load for themselves: stages are of CTAs that compute S.
            const LANES_SHARED_BYTES: usize = 48 << 10;
            /// How an instance loads: every lane for itself, by stages, or every lane for itself
            /// from rows of X and W0 that start at any element, in the input gradient of W0 alone.
            const BY_LANES: usize = 0;
            const BY_STAGES: usize = 1;
            const BY_SHIFTING_LANES: usize = 2;
            /// Tokens, rows of weights and CTAs of a tile, and how it loads: in the forward, and
            /// in the input gradient.
            const FORWARD: [[usize; 4]; 11] = [
                [8, 16, 1, BY_LANES],
                [8, 32, 1, BY_LANES],
                [16, 32, 1, BY_LANES],
                [16, 32, 1, BY_STAGES],
                [32, 32, 1, BY_STAGES],
                [32, 64, 1, BY_STAGES],
                [32, 64, 2, BY_STAGES],
                [8, 16, 1, BY_SHIFTING_LANES],
                [8, 32, 1, BY_SHIFTING_LANES],
                [16, 32, 1, BY_SHIFTING_LANES],
                [32, 32, 1, BY_SHIFTING_LANES],
            ];
            const INPUT_GRAD: [[usize; 4]; 6] = [
                [16, 64, 1, BY_STAGES],
                [16, 64, 2, BY_STAGES],
                [32, 64, 1, BY_STAGES],
                [32, 64, 2, BY_STAGES],
                [16, 32, 1, BY_SHIFTING_LANES],
                [32, 32, 1, BY_SHIFTING_LANES],
            ];
        }
        merge {
            /// A tile of the weight, and a step.
            const TILE_D: usize = 64;
            const TILE_K: usize = 128;
            const STEP_R: usize = 32;
            const STAGES: usize = 2;
            const THREADS: usize = 128;
        }
        round {
            const THREADS: usize = 256;
            /// Elements of a chunk for each thread.
            const ELEMENTS: usize = 8;
            /// Elements that a CTA rounds at a time.
            const CHUNK: usize = THREADS * ELEMENTS;
            /// Segments of a launch.
            const MAX_SEGMENTS: usize = 8;
        }
    }
    sm90a {
        ptx {
            /// Shared memory starts at a multiple of this, as the 128-byte swizzle needs.
            const SHARED_ALIGNMENT: usize = 1024;
            /// Columns of a box with the 128-byte swizzle. One of fewer has another swizzle.
            const BOX_COLS: usize = 64;
            /// Shared memory of a CTA that has an SM to itself, for its pipeline.
            const PIPELINE_BYTES: usize = 224 << 10;
            /// Threads of a CTA: a producer warpgroup and two consumer warpgroups.
            const THREE_WARPGROUPS: usize = 384;
        }
        wgmma {
            /// Columns of a product of a warpgroup.
            const COLS: [usize; 11] = [8, 16, 32, 64, 80, 128, 144, 176, 192, 224, 256];
        }
        projection {
            /// Rows of S or dS for which there is one flag.
            const FLAG_ROWS: usize = 128;
        }
        grads {
            /// Tiles along r.
            const RANK_TILES: [usize; 3] = [16, 64, 128];
            /// Rows of T in a step.
            const STEP_ROWS: usize = 64;
            /// Columns of dH or X in an item.
            const ITEM_COLS: usize = 128;
        }
        linear_tiles {
            /// Rows of a tile, columns of a step, and consumer warps.
            const TILE_M: usize = 128;
            const TILE_K: usize = 64;
            const CONSUMER_WARPS: usize = 8;
        }
        linear_layout {
            const MAX_STAGES: usize = 5;
            /// The barriers in shared memory.
            const BARRIERS_AT: usize = super::ptx::PIPELINE_BYTES;
            const BARRIER_BYTES: usize = 128;
        }
        linear {
            /// Widths of tiles, in both passes, and in the forward without slices of S: 14336
            /// columns are 64 tiles of 224.
            const TILES_N: [usize; 3] = [128, 176, 256];
            const FORWARD_TILES_N: [usize; 4] = [128, 176, 224, 256];
            /// Widths of tiles of dX with dropout: whole blocks of 32 columns.
            const DROPOUT_TILES_N: [usize; 2] = [128, 256];
            /// Widths of a slice of S or dS. A slice of 64 is all of it.
            const SLICES: [usize; 2] = [16, 64];
        }
        short {
            /// Heights of tiles.
            const TILES_M: [usize; 2] = [64, 128];
            /// Widths of tiles of H, and of dX.
            const FORWARD_TILES_N: [usize; 4] = [32, 64, 128, 224];
            const INPUT_GRAD_TILES_N: [usize; 3] = [64, 128, 256];
            /// Columns of a step along k or r, and the bytes of a row of them.
            const STEP: usize = 64;
            const STEP_BYTES: usize = STEP * 2;
            const MAX_STAGES: usize = 16;
            /// The barriers in shared memory.
            const BARRIERS_AT: usize = super::ptx::PIPELINE_BYTES;
            const BARRIER_BYTES: usize = 512;
        }
        decode {
            /// Tiles of tokens, in the forward and in the input gradient.
            const TILES_T: [usize; 5] = [8, 16, 32, 64, 128];
            const INPUT_GRAD_TILES_T: [usize; 4] = [8, 16, 32, 64];
            /// Tiles of tokens up to which two CTAs fit on an SM. With more, registers run out.
            const FORWARD_HALF_TOKENS: usize = 64;
            const INPUT_GRAD_HALF_TOKENS: usize = 32;
            /// Rows of a weight that a CTA works on at a time, at most, and up to which its
            /// warpgroups alternate steps or share the tokens.
            const MOST_ROWS: usize = 128;
            const TURNS_ROWS: usize = 64;
            /// A tile of tokens of S for tiles of H of 64: two fit on an SM.
            const HALF_PROJ_TOKENS: usize = 32;
            /// Consumer warps, and warps for dA and dB in the input gradient. The producer is last.
            const CONSUMER_WARPS: usize = 8;
            const GRAD_WARPS: usize = 4;
            /// Columns of a step along k or r, and the bytes of a row of them.
            const STEP: usize = 64;
            const STEP_BYTES: usize = STEP * 2;
            const MAX_STAGES: usize = 40;
            /// The stages in shared memory, behind the barriers.
            const STAGES_AT: usize = 1024;
            /// Behind the stages, the cluster reduce has buffers of chunks: four floats of each
            /// thread of a warpgroup, of eight tokens. How many buffers, by what each warpgroup
            /// computes: rows of its own, every other step, or half of the tokens.
            const CHUNK_TOKENS: usize = 8;
            const CHUNK_BYTES: usize = 128 * 16;
            const BUFFERS_BY_ROWS: usize = 2;
            const BUFFERS_BY_STEPS: usize = 3;
            const BUFFERS_BY_TOKENS: usize = 1;
            /// Behind these lies the output, rows padded so that no two start in one bank.
            const PAD_BYTES: usize = 16;
            /// Shared memory of a CTA, at most.
            const MAX_SHARED_BYTES: usize = 224 << 10;
        }
    }
}
