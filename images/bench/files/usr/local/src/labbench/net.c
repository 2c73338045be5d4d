/* TCP: requests and responses of one byte, and whole connections. */
#define _GNU_SOURCE
#include "labbench.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void *answer(void *argument)
{
    int link = (int)(intptr_t)argument;
    char byte;
    while (read(link, &byte, 1) == 1 && write(link, &byte, 1) == 1)
        ;
    close(link);
    return NULL;
}

int do_serve(int argc, char **argv)
{
    int on = 1, off = 0, listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)number(argc, argv, 1, 7007))};
    signal(SIGPIPE, SIG_IGN);
    if (listener < 0)
        fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 128))
        fail("listen");
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int link = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (link < 0)
            continue;
        setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (pthread_create(&thread, NULL, answer, (void *)(intptr_t)link))
            close(link);
        else
            pthread_detach(thread);
    }
}

static struct addrinfo *found;

static void find(int argc, char **argv)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    if (argc < 3 || getaddrinfo(argv[1], argv[2], &hints, &found)) {
        fprintf(stderr, "labbench: HOST PORT is expected, and HOST must be an address or a name\n");
        exit(2);
    }
}

static int linked(int reset)
{
    int on = 1, link = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval bound = {.tv_sec = 10};
    if (link < 0)
        fail("socket");
    setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
    setsockopt(link, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound);
    if (reset) { /* no TIME_WAIT: else the local ports would be used up after 28,000 connections */
        struct linger now_ = {.l_onoff = 1};
        setsockopt(link, SOL_SOCKET, SO_LINGER, &now_, sizeof now_);
    }
    if (connect(link, found->ai_addr, found->ai_addrlen))
        fail("connect");
    return link;
}

static void ask(int link)
{
    char byte = 'x';
    if (write(link, &byte, 1) != 1 || read(link, &byte, 1) != 1)
        fail("no answer");
}

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

int do_rr(int argc, char **argv)
{
    static double times[1 << 18];
    const size_t most = sizeof times / sizeof *times;
    find(argc, argv);
    double limit = number(argc, argv, 3, 1.0), took;
    int link = linked(0);
    for (int i = 0; i < 50; i++)
        ask(link);
    size_t count = 0;
    double began = now(), last = began;
    do {
        ask(link);
        double at = now();
        if (count < most)
            times[count] = at - last;
        count++;
        last = at;
        took = at - began;
    } while (took < limit);
    size_t kept = count < most ? count : most;
    qsort(times, kept, sizeof *times, by_size);
    printf("{\"ops\": %zu, \"seconds\": %.6f, \"us_p50\": %.2f, \"us_p99\": %.2f, \"ops_per_second\": %.1f}\n", count,
           took, times[kept / 2] * 1e6, times[kept * 99 / 100] * 1e6, count / took);
    return 0;
}

int do_connect(int argc, char **argv)
{
    find(argc, argv);
    double limit = number(argc, argv, 3, 1.0), began = now(), took, ops = 0;
    do {
        int link = linked(1);
        ask(link);
        close(link);
        ops++;
        took = now() - began;
    } while (took < limit);
    per_operation(ops, took);
    return 0;
}
