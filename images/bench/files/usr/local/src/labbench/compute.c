/* Processor and memory. */
#include "labbench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 88172645463325252ull;

static uint64_t next_random(void) /* xorshift64, Marsaglia 2003 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

int do_spin(int argc, char **argv)
{
    double iterations = number(argc, argv, 1, 1e8), began = now();
    for (uint64_t left = (uint64_t)iterations; left; left--)
        next_random();
    double took = now() - began;
    keep(random_state);
    per_operation(iterations, took);
    return 0;
}

int do_triad(int argc, char **argv)
{
    double limit = number(argc, argv, 1, 1.0);
    size_t count = (size_t)(number(argc, argv, 2, 96) * (1 << 20) / 3 / sizeof(double));
    double *a = malloc(count * sizeof *a), *b = malloc(count * sizeof *b), *c = malloc(count * sizeof *c);
    if (!a || !b || !c)
        fail("memory");
    for (size_t i = 0; i < count; i++) {
        a[i] = 0;
        b[i] = i;
        c[i] = 1;
    }
    double began = now(), took, passes = 0, best = 0;
    do {
        double start = now();
        for (size_t i = 0; i < count; i++)
            a[i] = b[i] + 3.0 * c[i];
        keep((uint64_t)a[count / 2]);
        double rate = 24e-6 * count / (now() - start);
        best = rate > best ? rate : best;
        passes++;
        took = now() - began;
    } while (took < limit);
    printf("{\"mb_per_second\": %.1f, \"best_mb_per_second\": %.1f, \"passes\": %.0f, \"seconds\": %.6f}\n",
           24e-6 * count * passes / took, best, passes, took);
    return 0;
}

int do_chase(int argc, char **argv)
{
    double limit = number(argc, argv, 1, 1.0);
    size_t lines = (size_t)(number(argc, argv, 2, 64) * (1 << 20) / 64);
    struct line {
        struct line *next;
        char rest[64 - sizeof(void *)];
    } *area = aligned_alloc(64, lines * sizeof *area);
    size_t *order = malloc(lines * sizeof *order);
    if (!area || !order)
        fail("memory");
    for (size_t i = 0; i < lines; i++)
        order[i] = i;
    for (size_t i = lines - 1; i; i--) { /* Sattolo's shuffle: one cycle through all lines */
        size_t j = next_random() % i, kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
    for (size_t i = 0; i < lines; i++)
        area[order[i]].next = &area[order[(i + 1) % lines]];
    free(order);
    struct line *at = area;
    double began = now(), took, ops = 0;
    do {
        for (int i = 0; i < 100000; i++)
            at = at->next;
        ops += 100000;
        took = now() - began;
    } while (took < limit);
    keep((uint64_t)(uintptr_t)at);
    per_operation(ops, took);
    return 0;
}

int do_lu(int argc, char **argv)
{
    size_t n = (size_t)number(argc, argv, 1, 500);
    double *a = malloc(n * n * sizeof *a);
    if (!a)
        fail("memory");
    for (size_t i = 0; i < n * n; i++)
        a[i] = (double)(next_random() % 1000) - 500;
    double began = now();
    for (size_t k = 0; k < n; k++) {
        size_t best = k;
        for (size_t i = k + 1; i < n; i++)
            if (fabs(a[i * n + k]) > fabs(a[best * n + k]))
                best = i;
        for (size_t j = 0; best != k && j < n; j++) {
            double kept = a[k * n + j];
            a[k * n + j] = a[best * n + j];
            a[best * n + j] = kept;
        }
        for (size_t i = k + 1; i < n; i++) {
            double factor = a[i * n + k] /= a[k * n + k];
            for (size_t j = k + 1; j < n; j++)
                a[i * n + j] -= factor * a[k * n + j];
        }
    }
    double took = now() - began;
    keep((uint64_t)a[n * n - 1]);
    printf("{\"n\": %zu, \"seconds\": %.6f, \"mflops\": %.2f}\n", n, took, 2.0 / 3 * n * n * n / took / 1e6);
    return 0;
}
