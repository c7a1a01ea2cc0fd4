/* Do the kernels stay inside their buffers? Odd shapes on buffers of exactly the right size, for the sanitizers. */

#include "../../../dsm_core/model/csrc/selective_scan.c"

#include <stdio.h>

static float *filled(int64_t count, float scale) {
    static uint32_t seed = 1;
    float *values = malloc((size_t)(count ? count : 1) * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = scale * ((float)(seed >> 8) / 8388608.0f - 1.0f);
    }
    return values;
}

static int scan(int64_t B, int64_t L, int64_t D, int64_t N, int64_t threads) {
    scan_call s = {.shape = {B, L, D, threads, 0, 0}, .states = N, .softplus = 1};
    int64_t all = B * L * D, tiles = scan_tiles(B, D, threads);
    float *buffers[] = {filled(all, 1),     filled(all, 1),           filled(D * N, -1), filled(B * L * N, 1),
                        filled(B * L * N, 1), filled(D, 1),           filled(all, 1),    filled(all, 1),
                        filled(all, 0),     filled(scan_starts_size(B, L, D, N), 0), filled(all, 0), filled(all, 0),
                        filled(all, 0),     filled(B * D * N, 0),     filled(B * D, 0),  filled(tiles * B * L * N, 0),
                        filled(tiles * B * L * N, 0)};
    s.u = buffers[0], s.delta = buffers[1], s.A = buffers[2], s.B = buffers[3], s.C = buffers[4], s.D = buffers[5];
    s.z = buffers[6], s.dy = buffers[7], s.y = buffers[8], s.starts = buffers[9], s.du = buffers[10];
    s.ddelta = buffers[11], s.dz = buffers[12], s.dA = buffers[13], s.dD = buffers[14], s.dB = buffers[15];
    s.dC = buffers[16];
    s.u_batch = s.delta_batch = s.z_batch = s.dy_batch = L * D, s.u_step = s.delta_step = s.z_step = s.dy_step = D;
    s.B_batch = s.C_batch = L * N, s.B_step = s.C_step = N;
    int status = scan_forward(&s) | scan_backward(&s);
    scan_exponentials(s.u, s.y, D < all ? D : all);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    return status;
}

static int convolution(int64_t B, int64_t L, int64_t D, int64_t K, int64_t threads) {
    conv_call s = {.shape = {B, L, D, threads, 0, 0}, .taps = K};
    float *x = filled(B * L * D, 1), *weight = filled(D * K, 1), *bias = filled(D, 1), *dy = filled(B * L * D, 1);
    float *y = filled(B * L * D, 0), *dx = filled(B * L * D, 0), *dweight = filled(B * D * K, 0), *dbias = filled(B * D, 0);
    s.x = x, s.weight = weight, s.bias = bias, s.dy = dy, s.y = y, s.dx = dx, s.dweight = dweight, s.dbias = dbias;
    s.x_batch = s.dy_batch = L * D, s.x_step = s.dy_step = D;
    int status = conv_forward(&s) | conv_backward(&s);
    float *buffers[] = {x, weight, bias, dy, y, dx, dweight, dbias};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    return status;
}

int main(void) {
    static const int64_t lengths[] = {0, 1, 3, 8, 9, 33, 70}, channels[] = {1, 4, 15, 16, 17, 45}, sizes[] = {1, 2, 4, 5, 8, 16};
    int status = 0, runs = 0;
    for (int level = 0; level < 3 && scan_choose(level); level++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
            for (size_t c = 0; c < sizeof channels / sizeof *channels; c++)
                for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++)
                    for (int64_t threads = 1; threads <= 3; threads++, runs++) {
                        status |= scan(2, lengths[l], channels[c], sizes[n], threads);
                        status |= convolution(2, lengths[l], channels[c], sizes[n], threads);
                    }
    printf("%d shapes, status %d\n", runs, status);
    return status;
}
