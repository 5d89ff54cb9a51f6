/* Every struct of the boundary between host and kernels: what the Rust twins are made of. */
#include "adamw.h"
#include "cast.h"
#include "dequantize.h"
#include "matmul.h"
#include "rmsnorm.h"
#include "sum_squares.h"
