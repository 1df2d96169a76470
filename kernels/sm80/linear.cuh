// Both passes of up to four projections that share X, in one launch:
//
//   forward      S  = s·X Aᵀ                X (T×k), A (r×k)          of each, if wanted here
//                H  = X W0ᵀ + S Bᵀ          W0 (d×k), B (d×r)         of one
//   input grad   dSᵢ = sᵢ·dHᵢ Bᵢ            dHᵢ (T×dᵢ), Bᵢ (dᵢ×rᵢ)    of each, if wanted here
//                dX = Σᵢ dHᵢ W0ᵢ + dS A     W0ᵢ (dᵢ×k), A (R×k)
//                dA (=|+=) dSᵀ X,  dBᵢ (=|+=) dHᵢᵀ Sᵢ
//
// With dropout, elements of X are dropped in dA, and elements of dS A in dX, where dS A is summed
// first. Launches before compute S and dS.
//
// R is the sum of the ranks. H and dX are out[m, n] = Σ lhs[m, k] rhs[n, k] over the segments, one
// after the other, and the k of each, accumulated in f32 and rounded once. In the forward every rhs
// lies K-major in memory, in the input gradient MN-major. X and W0 alone are the frozen layer.
//
// Tiles m×n×k, for all of which the stages take 96 KiB: a CTA fits on every GPU from 8.0 on.
//
//   tile         warps m×n×k   stages
//   128×256×32   2×4×1         4        the fewest bytes from shared memory for each mma
//   128×128×64   2×2×2         3        } narrow ones: where the widest are too few for the SMs, or
//   128×64×64    2×2×2         4        } the last wave of them is nearly empty
//   64×64×64     2×2×2         6        }
//   64×32×64     2×2×2         8        }
//
// Two warps along k each sum half of every step, and the halves are added at the end: the sums of
// narrow tiles have one order, that of the widest is another.
//
// Rows that do not start at multiples of 16 bytes are shifted on their way through registers
// (operand_tile.cuh), by instances of the tiles 128×64, 64×64 and 64×32. Where lhs is aligned, as
// copies are, these shift rhs alone, in 4 stages; elsewhere lhs and rhs, in 3 stages. Other tiles
// gather such rows element by element.
//
// Grid, 1-D, in this order:
//
//   CTAs of S, dS    |k of lhs, rhs|add the splits|publish|        projection.cuh
//   or whole S       |-- k of lhs, rhs --|publish|-- ... --|publish|
//   CTAs of H, dX    |------------ X, W0 ------------|wait|S, B|
//   CTAs of dB, dA   |T of dH, S|   |wait|T of X, dS|              linear_gradients.cuh
//   idle CTAs        fill the GPU, unless S is whole: plan/sm80/linear.rs
//
// CTAs of splits are more than the SMs that a single wave of tiles leaves idle: as many tiles start
// late. There, in the forward of aligned rows, a CTA for each idle SM computes S whole, tile by
// tile, beside the tiles of H (plan/sm80/split.rs).
//
// Tiles are taken in groups of 2048 rows, column by column, so that the CTAs that run at the same
// time share about as many rows of lhs as of rhs in the L2.
//
// CTA: 8 warps. Needs: flags that are zero, and are zero again after the launch; partials where
// sums are split. Writes every output once.
//
// Deadlock freedom: CTAs wait only for S, whose CTAs wait for none and come first in the grid: they
// start first, however many CTAs run at once.
#include "linear_gradients.cuh"

constexpr int kGroupRows = 2048;

// Steps in registers on their way to shared memory, as many as do not spill. NOTES: ptxas waits for
// the loads of all of them at once, so that their latency is paid once for so many steps.
__device__ constexpr int shifted_depth(Shifts shifts, int m, int n) {
    if (shifts == Shifts::Both) return m == 128 ? 1 : n == 64 ? 3 : 4;
    return m == 128 ? 4 : n == 64 ? 5 : 10;
}

template <typename E, int kM, int kN, Shifts kShifts, Major kRhs, typename D>
__device__ __forceinline__ void output_tile(const LinearParams& p, int tile, unsigned char* shared,
                                            const D& dropout) {
    constexpr int kWarpsK = kN == kWideTileN ? 1 : 2, kWarpsN = 4 / kWarpsK;
    constexpr int kK = kWarpsK * kWarpK;
    constexpr int kMostStages = kStagesBytes / ((kM + kN) * kK * 2);
    constexpr int kStages = kShifts == Shifts::None ? kMostStages : kShifts == Shifts::Rhs ? 4 : 3;
    constexpr int kDepth = shifted_depth(kShifts, kM, kN);
    using Product =
        TileProduct<E, kM, kN, kK, 2, kWarpsN, kWarpsK, Major::K, kRhs, kStages, kShifts, kDepth>;
    static_assert(Product::kThreads == kThreads && Product::kSharedBytes <= kStagesBytes);
    static_assert(kFlagRows % kM == 0);

    constexpr int kGroup = kGroupRows / kM;
    const int tiles_m = (p.m + kM - 1) / kM, tiles_n = (p.n + kN - 1) / kN;
    const int group = tile / (kGroup * tiles_n), in_group = tile % (kGroup * tiles_n);
    const int group_rows = min(kGroup, tiles_m - group * kGroup);
    const int m0 = (group * kGroup + in_group % group_rows) * kM;
    const int n0 = in_group / group_rows * kN;

    // S is in the last segment.
    auto before = [&](int segment) {
        if (p.s_tiles > 0 && segment == p.count - 1)
            wait_for(s_flag(p, m0), s_publications(p, m0));
    };
    Product product;
    if constexpr (kDrops<D>) {
        const Segment of_s[] = {p.segments[p.count - 1]};
        product.run(shared, of_s, 1, p.m, p.rhs_n, m0, n0);
        product.drop(mask_of(dropout), m0, n0);
        product.template run<true>(shared, p.segments, p.count - 1, p.m, p.rhs_n, m0, n0);
    } else {
        product.run(shared, p.segments, p.count, p.m, p.rhs_n, m0, n0, before);
        if (p.s_tiles > 0 && threadIdx.x == 0) s_seen(p);
    }
    if (p.out.vectors) {
        product.reduce_halves_k(shared);
        product.for_each_rounded_chunk([&](int row, int col, const uint4& chunk) {
            store_rounded<E>(p.out, m0 + row, n0 + col, p.m, p.n, chunk);
        });
        return;
    }
    if constexpr (kWarpsK > 1) product.reduce_warps_k(shared);
    if (Product::warp_k() > 0) return;
    product.for_each_chunk(shared, [&](int row, int col, const float(&v)[8]) {
        store_chunk<E>(p.out, m0 + row, n0 + col, p.m, p.n, v);
    });
}

template <typename E, int kM, int kN, bool kShifts, Major kRhs, typename D = NoDropout>
__device__ __forceinline__ void linear(const LinearParams& p, const D& dropout = {}) {
    extern __shared__ __align__(128) unsigned char shared[];
    int cta = blockIdx.x;
    if (cta >= p.ctas) return;
    if constexpr (!kDrops<D>) {
        if (cta < p.proj_ctas) {
            // What the `at`-th CTA or tile is of; `at` then counts from the first of that.
            auto projection_of = [&](int& at) -> const ProjectionParams& {
                int i = 0;
                for (; at >= p.projections[i].ctas; i++) at -= p.projections[i].ctas;
                return p.projections[i];
            };
            if constexpr (kRhs == Major::K && kN < kWideTileN) {
                if (p.whole_tiles > 0) {
                    for (; cta < p.whole_tiles; cta += p.proj_ctas) {
                        int tile = cta;
                        const ProjectionParams& of = projection_of(tile);
                        const int m0 = tile * kProjRows;
                        project_whole_tile<E, kRhs, kStagesBytes>(of, p.m, m0, shared);
                        __syncthreads();
                        if (threadIdx.x == 0) publish(s_flag(p, m0));
                    }
                    return;
                }
            }
            const ProjectionParams& of = projection_of(cta);
            project<E, kRhs, kStagesBytes, kM == 64>(of, p.m, cta, shared,
                                                     [&](int m0) { return s_flag(p, m0); });
            return;
        }
        cta -= p.proj_ctas;
    }
    if constexpr (kRhs == Major::MN) {
        if (cta >= p.tiles) {
            cta -= p.tiles;
            int i = 0;
            for (; cta >= p.gradients[i].ctas; i++) cta -= p.gradients[i].ctas;
            const LinearGradient& of = p.gradients[i];
            if (of.r <= 16) {
                gradient<E, 16>(p, of, cta, shared, dropout);
            } else {
                gradient<E, 64>(p, of, cta, shared, dropout);
            }
            return;
        }
    }
    if constexpr (kShifts) {
        // S, the last lhs, is not shifted.
        bool lhs_is_aligned = p.segments[0].lhs.vectors;
        for (int i = 1; i < p.count - 1; i++)
            lhs_is_aligned = lhs_is_aligned && p.segments[i].lhs.vectors;
        if (lhs_is_aligned) {
            output_tile<E, kM, kN, Shifts::Rhs, kRhs>(p, cta, shared, dropout);
        } else {
            output_tile<E, kM, kN, Shifts::Both, kRhs>(p, cta, shared, dropout);
        }
    } else {
        output_tile<E, kM, kN, Shifts::None, kRhs>(p, cta, shared, dropout);
    }
}
