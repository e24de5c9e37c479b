/* All operations; compiled once for each instruction set, with GF_ISA its name. */
#include "op.h"
#include "simd.h"

#include "activate.h"
#include "activations.h"
#include "attend.h"
#include "linear_float.h"
#include "linear_packed.h"
#include "norm.h"
#include "rotate.h"

#define NAME_OF(isa) gf_level_##isa
#define LEVEL(isa) NAME_OF(isa)
#define TEXT_OF(isa) #isa
#define TEXT(isa) TEXT_OF(isa)

static void linear(const Op *op, int thread, int n_threads, void *scratch) {
    if (op->format <= GF_F16) linear_float(op, thread, n_threads, scratch);
    else linear_packed(op, thread, n_threads, scratch);
}

const Level LEVEL(GF_ISA) = {
    .name = TEXT(GF_ISA),
    .functions =
        {
            [GF_QUANTIZE] = quantize,
            [GF_LINEAR] = linear,
            [GF_NORM] = norm,
            [GF_ROTATE] = rotate,
            [GF_ACTIVATE] = activate,
            [GF_ATTEND] = attend,
            [GF_ADD] = add,
            [GF_LOOK_UP] = linear_packed,
        },
};
