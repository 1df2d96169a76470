// The parameters of the kernels, once for both languages.
//
// Included twice, each time with a `params!` of its own. src/driver/params.rs makes `repr(C)`
// structs of them. shared.rs computes their layout, from which it writes the structs of the headers
// `manifest/ARCH/FILE.cuh`, with the same names and comments, and assertions for both compilers.
//
// `struct A: B` extends B: it begins with a B, its base class in C++ and its field `base` in Rust.
// Device addresses: F32 is a `float*`, ConstF32 a `const float*`, Flags a `uint32_t*`, and Memory a
// `void*`.

params! {
    common {
        dropout {
            /// Dropout as DropoutMask takes it.
            struct Dropout {
                /// In device memory, seed and offset instead of the next two; or null.
                state: ConstU32,
                /// Low words first.
                seed: [u32; 2],
                offset: [u32; 2],
                /// round(65536 p), less than 65536.
                threshold: u32,
                /// 1 / (1 - p).
                inv_keep: f32,
            }
        }
    }
    sm80 {
        tile {
            /// A matrix in device memory.
            struct Operand {
                data: Memory,
                /// Elements from one row to the next.
                ld: i32,
                /// 1 if data and every row start at a multiple of 16 bytes.
                vectors: i32,
            }
            /// A stretch of the inner dimension.
            struct Segment {
                /// m×k.
                lhs: Operand,
                /// n×k.
                rhs: Operand,
                k: i32,
            }
        }
        projection {
            /// out (m×r) = scale · lhs · rhsᵀ over k.
            struct ProjectionParams {
                lhs: Operand,
                rhs: Operand,
                out: Operand,
                /// Partial tiles, and for each tile the CTAs that have arrived.
                partials: F32,
                arrivals: Flags,
                k: i32,
                r: i32,
                scale: f32,
                /// Or tiles, of which a CTA has whole ones. 0 of unused ones.
                ctas: i32,
            }
        }
        linear {
            /// out (r×n) = lhsᵀ rhs over rows.
            struct LinearGradient {
                lhs: Operand,
                rhs: Operand,
                /// Dense.
                out: Operand,
                /// As of a projection, if there is more than one split.
                partials: F32,
                arrivals: Flags,
                r: i32,
                n: i32,
                splits: i32,
                rows_per_split: i32,
                /// Whether out is n×r.
                transpose: i32,
                /// Whether lhs is computed by this launch.
                waits: i32,
                /// 0 of unused ones.
                ctas: i32,
            }
            struct LinearParams {
                /// The first `count` are used: a product with each W0, and the adapters'.
                segments: [Segment; MAX_PROJECTIONS + 1],
                out: Operand,
                m: i32,
                n: i32,
                /// Columns of an MN-major rhs: n, or more, which are zeros.
                rhs_n: i32,
                count: i32,
                projections: [ProjectionParams; MAX_PROJECTIONS],
                gradients: [LinearGradient; MAX_PROJECTIONS + 1],
                /// CTAs that compute out: all of its tiles, or 0.
                tiles: i32,
                /// CTAs of all projections.
                proj_ctas: i32,
                /// Their tiles of S, if each CTA computes whole ones, else 0.
                whole_tiles: i32,
                /// Tiles of all projections in the same rows.
                s_tiles: i32,
                /// CTAs that wait for projections.
                waiters: i32,
                /// All that compute anything.
                ctas: i32,
                /// Whether gradients are added to what is there.
                accumulate: i32,
                /// Whether they have the elements of the operands, and not f32.
                rounds: i32,
                /// Waiters that are done, then for every FLAG_ROWS rows the tiles of projections
                /// that are there.
                flags: Flags,
            }
        }
        align {
            /// A matrix and its copy.
            struct AlignedCopy {
                from: Operand,
                to: Operand,
                rows: i32,
                cols: i32,
                /// 0 of unused ones.
                ctas: i32,
            }
            struct AlignParams {
                copies: [AlignedCopy; COPIES],
            }
        }
        project {
            struct ProjectParams {
                lhs: Operand,
                rhs: Operand,
                out: Operand,
                m: i32,
                r: i32,
                k: i32,
                /// The column before which each scale ends; beyond r for unused ones.
                ends: [i32; MAX_PROJECTIONS],
                scales: [f32; MAX_PROJECTIONS],
            }
        }
        decode {
            struct DecodeParams {
                x: Operand,
                w0: Operand,
                a: Operand,
                b: Operand,
                s: Operand,
                h: Operand,
                /// In the input gradient, X and the S of the forward.
                y: Operand,
                saved_s: Operand,
                /// Dense, f32 or 16 bits.
                da: Memory,
                db: Memory,
                /// Partial tiles: of S, then of H.
                partials: F32,
                /// Waiters that have seen S, tiles of S that are there, then the CTAs that have
                /// arrived for each tile of S and of H.
                flags: Flags,
                t: i32,
                k: i32,
                d: i32,
                r: i32,
                /// Tiles of S, CTAs that compute them, and all CTAs that compute anything.
                rank_tiles: i32,
                proj_ctas: i32,
                ctas: i32,
                /// 0 if H is not wanted.
                row_tiles: i32,
                /// Of 64 columns; 0 if dA and dB are not wanted.
                da_tiles: i32,
                db_tiles: i32,
                /// CTAs that wait for S.
                waiters: i32,
                /// f32 elements of the partial tiles of S.
                proj_partials: i32,
                scale: f32,
                /// Of dA and dB, as in LinearParams.
                accumulate: i32,
                rounds: i32,
            }
        }
        merge {
            struct MergeParams {
                w: Operand,
                b: Operand,
                a: Operand,
                out: Operand,
                d: i32,
                k: i32,
                r: i32,
                scale: f32,
            }
        }
        round {
            struct RoundParams {
                src: [ConstF32; MAX_SEGMENTS],
                dst: [Memory; MAX_SEGMENTS],
                elements: [i64; MAX_SEGMENTS],
                /// Segments that are used.
                count: i32,
            }
        }
    }
    sm90a {
        parts {
            /// Layers that share X. The starts of unused ones are INT_MAX. Parts in C++ has functions
            /// too.
            struct LayerParts {
                /// Among the outputs of all layers, counted in whole tiles or steps.
                start: [i32; MAX_PROJECTIONS],
                /// Among the columns of S.
                rank_start: [i32; MAX_PROJECTIONS],
                /// Columns of S.
                rank: [i32; MAX_PROJECTIONS],
                scale: [f32; MAX_PROJECTIONS],
            }
        }
        grads {
            struct HopperGradsParams {
                /// dH of each layer, in boxes of 64 rows and columns, as the next two.
                dh: [TensorMap; MAX_PROJECTIONS],
                b: [TensorMap; MAX_PROJECTIONS],
                x: TensorMap,
                /// In boxes of 64 rows and kRankBoxCols columns, as dS.
                s: TensorMap,
                ds: TensorMap,
                /// dS, if it is computed here.
                ds_out: Memory,
                /// A counter, then one for every kFlagRows rows of dS.
                flags: Flags,
                db: [Memory; MAX_PROJECTIONS],
                /// Null if dA and dB are not wanted.
                da: Memory,
                /// 0 of unused layers.
                d: [i32; MAX_PROJECTIONS],
                t: i32,
                k: i32,
                /// Of all layers.
                r: i32,
                /// Of all layers, as Parts counts them.
                outputs: i32,
                /// CTAs that compute dS, the first ones; 0 if another launch or other CTAs do.
                proj_ctas: i32,
                /// What a flag counts up to when its rows of dS are there; 0 if all are.
                ds_flag_count: i32,
                accumulate: i32,
                /// Whether dA and dB have 16 bits.
                rounds: i32,
                /// With dropout: the splits of T in which dA is computed, rows of each, its partial
                /// sums, and for every item a counter for each warp.
                splits: i32,
                rows_per_split: i32,
                partials: F32,
                arrivals: Flags,
                parts: Parts,
            }
        }
        linear_tiles {
            /// What both passes have.
            struct HopperProduct {
                /// Where proj is written, m×r.
                s: Memory,
                /// A counter, one for every 128 rows of proj, then one for every warp below.
                flags: Flags,
                /// Partial tiles, one for every multiplying warp.
                partials: F32,
                m: i32,
                /// Of all layers, in the forward as Parts counts outputs.
                n: i32,
                /// In the input gradient as Parts counts outputs.
                k: i32,
                r: i32,
                /// Slices of proj to compute here; 0 if it is an input.
                slices: i32,
                /// Columns of tiles that compute a slice: one for each, or more if there is one
                /// slice.
                slice_cols: i32,
                /// Rows of cluster tiles that are worked on together when all slices are computed.
                group: i32,
                /// Clusters that compute slices, whole rows of them at a time.
                slice_clusters: i32,
                /// Cluster tiles that are not split: a multiple of the clusters, or all.
                full_tiles: i32,
                /// Clusters, the first ones, that compute proj for the others.
                proj_clusters: i32,
                /// Clusters, the last ones, that work on grads and not on tiles.
                grad_clusters: i32,
                parts: Parts,
            }
            /// An output in boxes of 64 rows, and 64, 32 and 16 columns.
            struct OutBoxes {
                by_64: TensorMap,
                by_32: TensorMap,
                by_16: TensorMap,
            }
            /// A layer of the forward.
            struct ForwardLayer {
                rhs: TensorMap,
                up_weight: TensorMap,
                out: OutBoxes,
            }
            /// A layer of the input gradient.
            struct InputGradLayer {
                lhs: TensorMap,
                rhs: TensorMap,
                proj_weight: TensorMap,
            }
            struct ForwardParams: HopperProduct {
                of_lhs: TensorMap,
                of_proj_weight: TensorMap,
                proj: TensorMap,
                of: [ForwardLayer; MAX_PROJECTIONS],
            }
            struct InputGradParams: HopperProduct {
                proj: TensorMap,
                of_up_weight: TensorMap,
                of_out: OutBoxes,
                of: [InputGradLayer; MAX_PROJECTIONS],
                grads: HopperGradsParams,
            }
        }
        decode {
            struct HopperDecodeParams {
                /// In boxes of 64 columns and as many rows as a CTA works on; MN-major, of 64×64.
                /// As the next two.
                w0: TensorMap,
                a: TensorMap,
                b: TensorMap,
                /// In boxes of 64 columns and x_rows rows.
                x: TensorMap,
                /// In boxes of 64 columns and t rows.
                s: TensorMap,
                /// X in boxes of 64 columns and proj_tokens rows.
                proj_x: TensorMap,
                h: Memory,
                s_out: Memory,
                /// CTAs that have seen all of S, then CTAs that have computed their part of it.
                flags: Flags,
                t: i32,
                k: i32,
                d: i32,
                r: i32,
                /// Elements from one row of S to the next: S may be columns of a matrix.
                s_cols: i32,
                scale: f32,
                /// t, or where the CTAs of a cluster load half of X each, half of it, a multiple
                /// of 8.
                x_rows: i32,
                /// The CTAs of a cluster share rows of W0 and have half of k each.
                split: i32,
                /// Of W0 that a cluster, or a CTA, works on at a time: 128 at most, over 64 unless
                /// split.
                rows: i32,
                /// Row blocks per CTA; 1 if split.
                rounds: i32,
                /// Stages; an even number for up to 64 rows.
                stages: i32,
                /// Steps of W0 to prefetch into the L2 before the PDL wait.
                prefetch_steps: i32,
                /// The step whose loads trigger PDL.
                pdl_trigger_step: i32,
                /// The clusters that compute S; 0 if r is.
                proj_clusters: i32,
                /// Parts of its columns.
                proj_rank_tiles: i32,
                /// Rows of A for each of those: 64 at most.
                proj_rows: i32,
                /// Tokens that a stage of theirs has room for: 32 or kN.
                proj_tile: i32,
                /// Tokens of X for each cluster, at most.
                proj_tokens: i32,
                proj_stages: i32,
                /// Steps of A and X to prefetch into the L2 before the PDL wait.
                proj_prefetch_steps: i32,
                /// The step of grads_beside in shared memory, in the input gradient.
                grads_at: i32,
                /// Row stride of H in elements, a multiple of 8.
                h_cols: i32,
            }
            struct HopperDecodeBackwardParams {
                product: HopperDecodeParams,
                grads: HopperGradsParams,
            }
        }
        short {
            struct HopperShortParams {
                /// In boxes of 64 columns and as many rows as a tile has, as proj.
                lhs: TensorMap,
                proj: TensorMap,
                /// In boxes of 64 columns and kN / 2 rows; MN-major, of 32 rows. As up_weight.
                rhs: TensorMap,
                up_weight: TensorMap,
                /// In boxes of 64 columns and as many rows as a tile of proj has columns;
                /// MN-major, of 64×64.
                proj_weight: TensorMap,
                out: Memory,
                /// Where proj is written.
                s: Memory,
                /// Waiters that have seen theirs, then for the rows of a tile, the tiles of proj
                /// that are there.
                flags: Flags,
                m: i32,
                n: i32,
                k: i32,
                r: i32,
                /// Of a tile, kM at most.
                rows: i32,
                /// Elements from one row of proj to the next: it may be columns of a matrix.
                s_cols: i32,
                scale: f32,
                /// The clusters that compute proj; 0 if r is.
                proj_clusters: i32,
                /// Whether other CTAs wait for proj.
                publishes: i32,
                /// Row stride of out in elements, a multiple of 8.
                out_cols: i32,
            }
            struct HopperShortBackwardParams {
                product: HopperShortParams,
                /// dA is null if they are not computed here.
                grads: HopperGradsParams,
            }
        }
    }
}
